"""A sampling loop of one's own over a bare denoiser, with numbers that can be computed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dummy import Dummy
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumError, SpectrumWarning
from spectrum_diffusion.core.branches import UNCLEAR
from spectrum_diffusion.sites import denoisers


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dummy]:
    monkeypatch.setattr(denoisers, "_registered", {})
    spectrum_diffusion.register_denoiser(Dummy, blocks="blocks", tail="tail")
    return Dummy().eval()


def sample(handle: Any, model: nn.Module, inputs: list[float]) -> list[float]:
    outputs = []
    with torch.no_grad(), handle.run(total_steps=len(inputs)) as run:
        for step, value in enumerate(inputs):
            run.step(step)
            outputs.append(model(torch.tensor([[value]])).item())
    return outputs


def test_41_if_skipped_44_if_run(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle:
        # Step 0: (1 + 3)·10 + 1 = 41. Step 1 at x = 4 goes on from the feature 4 of step 0: 4·10 + 4, not 74.
        assert sample(handle, model, [1.0, 4.0]) == [41.0, 44.0]
        assert [block.runs for block in model.blocks] == [1, 1]
    with torch.no_grad():
        assert model(torch.tensor([[4.0]])).item() == 74.0


def test_output_site_runs_nothing(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", site="output", evaluated=[0]) as handle:
        assert sample(handle, model, [1.0, 4.0]) == [41.0, 41.0]
    assert [block.runs for block in model.blocks] == [1, 1]


def test_line_is_continued_exactly(model: Dummy) -> None:
    # Features 4 and 5 at steps 0 and 1 lie on a line: 6 and 7 at steps 2 and 3.
    with spectrum_diffusion.enable(model, "taylor", order=1, evaluated=[0, 1]) as handle:
        outputs = sample(handle, model, [1.0, 2.0, 0.0, 0.0])
    assert outputs == pytest.approx([41.0, 52.0, 60.0, 70.0])
    summary = handle.summary()
    assert summary.evaluated == [0, 1]
    assert summary.branches["0"].forecast == 2


def test_branches_have_histories_of_their_own(model: Dummy) -> None:
    inputs = {"cond": 1.0, "uncond": 2.0}
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=2) as run:
            outputs = []
            for step in range(2):
                run.step(step)
                for name, value in inputs.items():
                    run.branch(name)
                    outputs.append(model(torch.tensor([[value]])).item())
        assert outputs == [41.0, 52.0, 41.0, 52.0]
        assert list(handle.summary().branches) == ["cond", "uncond"]
        with handle.run(total_steps=2) as run:  # unnamed: told apart by their order
            for step in range(2):
                run.step(step)
                assert [model(torch.tensor([[value]])).item() for value in inputs.values()] == [41.0, 52.0]
        assert list(handle.summary().branches) == ["0", "1"]


def test_a_branch_may_be_named_for_a_block(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=2) as run:
            for step in range(2):
                run.step(step)
                with run.branch("cond"):
                    assert model(torch.tensor([[1.0]])).item() == 41.0
                assert model(torch.tensor([[2.0]])).item() == 52.0  # has no name again
        assert list(handle.summary().branches) == ["cond", "1"]


def test_changed_shape_begins_a_new_history(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=3) as run:
            for step, x in enumerate([torch.ones(1, 1), torch.ones(1, 2), torch.zeros(1, 2)]):
                run.step(step)
                output = model(x)
        assert torch.equal(output, torch.full((1, 2), 40.0))
        assert handle.summary().fallbacks == {1: "shape changed"}
        assert handle.summary().evaluated == [0, 1]


def test_steps_left_out_are_no_error(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=10) as run:
            for step in (3, 7):
                run.step(step)
                model(torch.ones(1, 1))
        assert handle.summary().fallbacks == {3: "history too short (0 of 1)"}


def test_on_step_is_told_what_was_done(model: Dummy) -> None:
    told: list[tuple[Any, ...]] = []
    handle = spectrum_diffusion.enable(model, "reuse", evaluated=[0], on_step=lambda *what: told.append(what))
    sample(handle, model, [1.0, 4.0])
    assert told == [(0, "0", "evaluated", ""), (1, "0", "forecast", "")]


@pytest.mark.parametrize("total", [0, -1, 2.5, True, "10", None])
def test_wrong_number_of_steps(model: Dummy, total: Any) -> None:
    handle = spectrum_diffusion.enable(model)
    with pytest.raises(InvalidOptionError, match="total_steps="), handle.run(total_steps=total):
        pass
    with handle.run(total_steps=2):
        pass


@pytest.mark.parametrize("index", [-1, 5, 1.5, None])
def test_wrong_step(model: Dummy, index: Any) -> None:
    handle = spectrum_diffusion.enable(model)
    with pytest.raises(InvalidOptionError, match=f"step={index}"), handle.run(total_steps=5) as run:
        run.step(index)


def test_step_never_goes_back(model: Dummy) -> None:
    handle = spectrum_diffusion.enable(model)
    with handle.run(total_steps=5) as run:
        run.step(2)
        run.step(2)
        with pytest.raises(InvalidOptionError, match=r"step\(1\) goes back from step 2"):
            run.step(1)


def test_call_before_the_first_step(model: Dummy) -> None:
    handle = spectrum_diffusion.enable(model)
    with handle.run(total_steps=5), torch.no_grad(), pytest.raises(SpectrumError, match=r"before run\.step"):
        model(torch.ones(1, 1))


def test_gradients_are_refused(model: Dummy) -> None:
    handle = spectrum_diffusion.enable(model)
    with handle.run(total_steps=5) as run, torch.enable_grad():
        run.step(0)
        with pytest.raises(SpectrumError, match="gradients enabled"):
            model(torch.ones(1, 1))


def test_call_outside_of_a_run_is_untouched_and_warns_once(model: Dummy) -> None:
    spectrum_diffusion.enable(model, "reuse", evaluated=[0])
    with torch.no_grad():
        with pytest.warns(SpectrumWarning, match="outside a generation") as seen:
            assert [model(torch.tensor([[x]])).item() for x in (1.0, 4.0)] == [41.0, 74.0]
        assert len(seen) == 1


def test_speedup_out_of_reach_refuses_before_anything_runs(model: Dummy) -> None:
    handle = spectrum_diffusion.enable(model, speedup=50)
    with pytest.raises(InvalidOptionError, match="speedup=50 leaves 0 of 10 steps"):
        sample(handle, model, [1.0] * 10)
    assert [block.runs for block in model.blocks] == [0, 0]


def windows(model: Dummy, handle: Any, orders: list[list[int]], *, named: bool) -> list[list[float]]:
    """The outputs' means of windows that are told apart by their content, in the order 0, 1, … at each step."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(8, 8, generator=generator) + 10 * k for k in range(max(map(len, orders)))]
    means = []
    with handle.run(total_steps=len(orders)) as run, torch.no_grad():
        for step, order in enumerate(orders):
            run.step(step)
            outputs = {}
            for k in order:
                if named:
                    run.branch(f"window {k}")
                outputs[k] = model(noise[k] * (1 - 0.01 * step)).mean().item()
            means.append([outputs[k] for k in sorted(outputs)])
    return means


def test_named_branches_have_no_limit(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", interval=4, warmup=1, slope=0) as handle:
        windows(model, handle, [list(range(24))] * 20, named=True)
        summary = handle.summary()
    assert (summary.calls, summary.evaluated_calls, summary.call_speedup) == (480, 120, 4.0)
    assert summary.speedup == 4.0
    assert len(summary.branches) == 24
    assert all(branch.fallback == 0 for branch in summary.branches.values())
    assert "480, 120 evaluated, 4.00x fewer" in str(summary)


def test_unnamed_windows_in_another_order_are_not_mixed_up(model: Dummy) -> None:
    orders = [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0], [1, 0, 3, 2]]
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0, 2]) as handle:
        expected = windows(model, handle, orders, named=True)
        assert windows(model, handle, orders, named=False) == expected
        assert handle.summary().fallbacks == {}


def test_unnamed_windows_that_were_never_there_are_evaluated(model: Dummy) -> None:
    told: list[tuple[int, str]] = []
    generator = torch.Generator().manual_seed(0)
    note = lambda step, branch, action, reason: told.append((step, reason))  # noqa: E731
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0], on_step=note) as handle, torch.no_grad():
        with handle.run(total_steps=3) as run:
            for step in range(3):
                run.step(step)
                for _ in range(2):
                    window = torch.randn(8, 8, generator=generator)
                    assert torch.equal(model(window), 10 * (window + 1 + 2) + window)
    assert {reason for step, reason in told if step > 0} == {UNCLEAR}


def test_more_unnamed_calls_than_can_be_told_apart_say_so(model: Dummy) -> None:
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        windows(model, handle, [list(range(12))] * 2, named=False)
        summary = handle.summary()
    assert summary.calls == 24
    assert summary.evaluated_calls == 12 + 4
