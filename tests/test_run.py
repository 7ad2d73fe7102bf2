"""Which step, which branch, which expert: over every pipeline, and what pipelines may share."""

from __future__ import annotations

import math
import threading
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from zoo import VARIANTS, ZOO
from zoo.entry import cond

import spectrum_diffusion
from spectrum_diffusion import ConflictError, SpectrumWarning

STEPS = 10
METHODS = ["spectrum", "paper", "taylor", "reuse", "fewer-steps"]
ON_STEPS_OF = ["flux", "sdxl-ddim", "wan", "wan22", "sd3-skip-layer", "flux-img2img"]
quiet = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


@quiet
@pytest.mark.parametrize("site", ["last_block", "output"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PIPELINES)
def test_sums_hold(name: str, method: str, site: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, method, site=site, warmup=2) as handle:
        assert torch.isfinite(entry.call(pipe, steps=16)).all()
    summary = handle.summary()
    for branch in summary.branches.values():
        assert branch.evaluated + branch.forecast + branch.partial == branch.steps
        assert branch.fallback <= branch.evaluated
    assert summary.calls == sum(branch.steps for branch in summary.branches.values())
    assert set(summary.fallbacks) <= set(summary.evaluated)
    assert all(summary.fallbacks.values())
    assert summary.nfe == len(summary.evaluated) <= summary.steps
    if method == "fewer-steps":
        assert summary.nfe == summary.steps
    else:
        assert summary.steps == entry.total(16)
        if method != "spectrum":  # whose schedule follows the noise of the run
            assert set(handle.method.schedule(summary.steps)) <= set(summary.evaluated)
        assert summary.nfe < summary.steps


COUNTED = [
    *("flux-img2img", "flux-inpaint", "sd3-img2img", "sdxl-img2img", "sdxl-img2img-ddim", "sdxl-inpaint"),
    *("sd3-heun", "sdxl-heun", "sdxl-img2img-heun", "sdxl-pndm", "sd15", "sdxl-ddim", "sdxl-denoising-end"),
    *("sdxl-denoising-end-ddim", "sdxl-denoising-start", "sdxl-denoising-window"),
]


@quiet
@pytest.mark.parametrize("name", COUNTED)
def test_steps_are_counted_from_where_the_run_begins(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    told: list[tuple[int, str]] = []
    on_step = lambda step, branch, action, reason: told.append((step, action))  # noqa: E731
    with spectrum_diffusion.enable(pipe, "paper", warmup=2, on_step=on_step) as handle:
        for steps in (STEPS, 7, STEPS):
            told.clear()
            entry.call(pipe, steps=steps)
            total = entry.total(steps)
            evaluated = handle.method.schedule(total)
            assert told == [(step, "evaluated" if step in evaluated else "forecast") for step in range(total)]
            assert handle.summary().fallbacks == {}


def actions(name: str, **options: Any) -> tuple[list[tuple[int, str, str, str]], Any]:
    entry = PIPELINES[name]
    pipe = entry.build()
    told: list[tuple[int, str, str, str]] = []
    with spectrum_diffusion.enable(pipe, on_step=lambda *what: told.append(what), **options) as handle:
        entry.call(pipe, steps=STEPS)
    return told, handle.summary()


def test_branch_that_starts_midway_falls_back_until_its_history_suffices() -> None:
    told, summary = actions("wan-guidance-starts", method="paper", evaluated=[0, 1, 2, 7])
    late = [what for what in told if what[1] != told[0][1]]
    assert [what[0] for what in late] == list(range(5, 10))
    assert late[0][2:] == ("fallback", "history too short (0 of 2)")
    assert late[1][2:] == ("fallback", "history too short (1 of 2)")
    assert [what[2] for what in late[2:]] == ["evaluated", "forecast", "forecast"]
    assert sorted(branch.fallback for branch in summary.branches.values()) == [0, 2]
    assert summary.evaluated == [0, 1, 2, 7]


def test_branch_that_stops_midway_leaves_the_other_alone() -> None:
    told, summary = actions("wan-guidance-stops", method="paper", evaluated=[0, 1, 2, 7])
    assert sorted(branch.steps for branch in summary.branches.values()) == [5, 10]
    assert all(what[2] in ("evaluated", "forecast") for what in told)


def test_halved_batch_falls_back_with_its_reason() -> None:
    _, summary = actions("sdxl-guidance-interval", method="reuse", evaluated=[0, 1, 2])
    assert summary.steps == STEPS
    assert set(summary.fallbacks.values()) == {"shape changed"} or len(summary.branches) == 2
    assert summary.fallbacks
    assert summary.branches[next(iter(summary.branches))].forecast > 0


def test_experts_have_histories_of_their_own() -> None:
    told, summary = actions("wan22", method="paper", evaluated=[0, 1, 2, 8])
    fallbacks = [what for what in told if what[2] == "fallback"]
    assert fallbacks, "the second expert began without a history of its own"
    assert {what[3] for what in fallbacks} == {"history too short (0 of 2)", "history too short (1 of 2)"}
    assert summary.calls == 2 * STEPS
    first = fallbacks[0][0]
    assert [what[2] for what in told if what[0] == first] == ["fallback", "fallback"]
    assert sorted(set(summary.fallbacks)) == [first, first + 1]


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan", "hunyuan-video"])
def test_shapes_and_batches_may_change_between_calls(name: str) -> None:
    entry = PIPELINES[name]
    count = "num_videos_per_prompt" if name in ("wan", "hunyuan-video") else "num_images_per_prompt"
    pipe = entry.build()
    spectrum_diffusion.enable(pipe, speedup=2, warmup=2)
    for overrides in ({}, {count: 2}, {"height": 32, "width": 32}, {}):
        fresh = entry.build()
        handle = spectrum_diffusion.enable(fresh, speedup=2, warmup=2)
        expected = entry.call(fresh, steps=8, **overrides)
        assert torch.equal(entry.call(pipe, steps=8, **overrides), expected)
        assert handle.summary().fallbacks == {}
        assert handle.summary().nfe < 8


@pytest.mark.parametrize("name", ["flux", "wan22", "sdxl", "sd3-skip-layer"])
@pytest.mark.parametrize("site", ["last_block", "output"])
def test_audit_samples_as_if_skipped(name: str, site: str) -> None:
    entry = PIPELINES[name]
    results, summaries = [], []
    for audit in (False, True):
        pipe = entry.build()
        with spectrum_diffusion.enable(pipe, "paper", warmup=2, site=site, audit=audit) as handle:
            results.append(entry.call(pipe, steps=STEPS))
        summaries.append(handle.summary())
    assert torch.equal(*results)
    plain, audited = summaries
    assert plain.errors == {}
    assert sorted(audited.errors) == sorted(set(range(STEPS)) - set(audited.evaluated))
    assert all(math.isfinite(error) and error >= 0 for error in audited.errors.values())
    assert audited.branches == plain.branches
    assert audited.evaluated == plain.evaluated


def test_timing_changes_no_result() -> None:
    entry = PIPELINES["flux"]
    results = []
    for timing in (False, True):
        pipe = entry.build()
        with spectrum_diffusion.enable(pipe, "paper", warmup=2, timing=timing) as handle:
            results.append(entry.call(pipe, steps=STEPS))
        spent = handle.summary().milliseconds
        assert (spent is not None) == timing
    assert torch.equal(*results)
    assert spent is not None
    assert set(spent) == {"evaluating", "forecasting", "outside"}
    assert all(value > 0 for value in spent.values())


@pytest.mark.parametrize("name", ON_STEPS_OF)
def test_on_step_tells_every_call(name: str) -> None:
    told, summary = actions(name, method="paper", warmup=2)
    assert len(told) == summary.calls
    assert [step for step, *_ in told] == sorted(step for step, *_ in told)
    assert {branch for _, branch, *_ in told} == set(summary.branches)
    assert all(bool(reason) == (action == "fallback") for *_, action, reason in told)


def sharing() -> tuple[Any, Any]:
    """Two pipelines around one transformer."""
    first, second = PIPELINES["sd3"].build(), PIPELINES["sd3"].build()
    second.transformer = first.transformer
    return first, second


def test_pipeline_that_shares_a_transformer_is_untouched_and_warns_once() -> None:
    entry = PIPELINES["sd3"]
    plain = entry.call(entry.build(), steps=STEPS)
    first, second = sharing()
    spectrum_diffusion.enable(first, "reuse", warmup=2)
    accelerated = entry.call(first, steps=STEPS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(entry.call(second, steps=STEPS), plain)
    assert sum(issubclass(warning.category, SpectrumWarning) for warning in seen) == 1
    assert torch.equal(entry.call(first, steps=STEPS), accelerated)


@pytest.mark.parametrize("sites", [("last_block", "last_block"), ("last_block", "output"), ("output", "last_block")])
def test_both_pipelines_enabled_on_a_shared_transformer(sites: tuple[str, str]) -> None:
    entry = PIPELINES["sd3"]
    expected = []
    for method, site in zip(("reuse", "paper"), sites, strict=True):
        pipe = entry.build()
        spectrum_diffusion.enable(pipe, method, warmup=2, site=site)
        expected.append(entry.call(pipe, steps=STEPS))
    first, second = sharing()
    before = [sorted(vars(module)) for module in first.transformer.modules()]
    spectrum_diffusion.enable(first, "reuse", warmup=2, site=sites[0])
    spectrum_diffusion.enable(second, "paper", warmup=2, site=sites[1])
    for _ in range(2):
        assert torch.equal(entry.call(first, steps=STEPS), expected[0])
        assert torch.equal(entry.call(second, steps=STEPS), expected[1])
    spectrum_diffusion.disable(first)
    assert torch.equal(entry.call(second, steps=STEPS), expected[1])
    spectrum_diffusion.disable(second)
    assert [sorted(vars(module)) for module in first.transformer.modules()] == before


@pytest.mark.parametrize("shared", [False, True], ids=["the same pipeline", "a shared transformer"])
def test_second_thread_is_refused_and_the_first_is_right(shared: bool) -> None:
    entry = PIPELINES["sd3"]
    first, second = sharing()
    spectrum_diffusion.enable(first, "reuse", warmup=2)
    expected = entry.call(first, steps=STEPS)
    if shared:
        spectrum_diffusion.enable(second, "reuse", warmup=2)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            entry.call(second if shared else first, steps=STEPS)
        except BaseException as error:
            errors.append(error)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return tensors

    assert torch.equal(entry.call(first, steps=STEPS, callback_on_step_end=callback), expected)
    assert [type(error) for error in errors] == [ConflictError]
    assert torch.equal(entry.call(first, steps=STEPS), expected)
    other()
    assert len(errors) == 1


def test_disable_and_enable_during_a_generation_are_refused() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    expected = entry.call(pipe, steps=STEPS)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for change in (spectrum_diffusion.disable, spectrum_diffusion.enable):
            with pytest.raises(ConflictError, match="under way"):
                change(pipe)
        return tensors

    assert torch.equal(entry.call(pipe, steps=STEPS, callback_on_step_end=callback), expected)


CONSUMED = {
    "UNet2DConditionModel/adapter": {},
    "HunyuanDiT2DModel": {"controlnet_block_samples": lambda draw: [cond(16, 16)(draw)]},
}


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "reuse") for name in CONSUMED), ("HunyuanDiT2DModel", "first-block-cache")]
)
def test_audit_is_right_where_the_denoiser_consumes_its_arguments(name: str, method: str) -> None:
    """Every step is given the same arguments, so that the reused feature has no error at all."""
    entry = (ZOO | VARIANTS)[name]
    entry = replace(entry, call={**entry.call, **CONSUMED[name]})
    options = {"interval": 4, "warmup": 1} if method == "reuse" else {"threshold": 1.0}
    model = entry.build()
    with spectrum_diffusion.enable(model, method, audit=True, **options) as handle, torch.no_grad():
        with handle.run(4) as run:
            for step in range(4):
                run.step(step)
                model(**entry.inputs())
    assert handle.summary().errors == {1: 0.0, 2: 0.0, 3: 0.0}
