"""Models and handles that are shared, swapped, dropped or used from elsewhere: nothing mixes, nothing stays behind."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import ConflictError, SpectrumError, register_denoiser
from spectrum_diffusion.sites.interceptor import SLOT, Interceptor


class Doubler(nn.Module):
    """2·x by one block and a tail that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Times(2.0)])
        self.tail = Times(1.0)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.tail(self.blocks[0](x) + condition)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.fixture
def doubler() -> Any:
    register_denoiser(Doubler, blocks="blocks", tail="tail")
    yield Doubler().eval()
    spectrum_diffusion.sites.denoisers._registered.pop("Doubler")


def intercepted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module.__dict__.get(SLOT), Interceptor)]


def test_experts_enabled_one_by_one_before_do_not_share_a_history() -> None:
    entry = PIPELINES["wan22"]
    fresh, pipe = entry.build(), entry.build()
    with spectrum_diffusion.enable(fresh, "paper", warmup=2):
        expected = entry.call(fresh, steps=10)
    spectrum_diffusion.enable(pipe.transformer)
    spectrum_diffusion.enable(pipe.transformer_2)
    with spectrum_diffusion.enable(pipe, "paper", warmup=2):
        assert torch.equal(entry.call(pipe, steps=10), expected)


def test_branch_that_stops_after_the_first_step_leaves_the_other_its_history(doubler: Any) -> None:
    conditions = [torch.tensor([0.0]), torch.tensor([100.0])]
    with spectrum_diffusion.enable(doubler, "taylor", evaluated=[0, 1]) as handle, torch.no_grad():
        with handle.run(total_steps=3) as run:
            for step in range(3):
                run.step(step)
                outputs = [doubler(torch.zeros(1), c) for c in (conditions if step == 0 else conditions[1:])]
    assert outputs[-1].item() == 100.0


def test_another_thread_gets_no_forecast_of_this_ones_run(doubler: Any) -> None:
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with torch.no_grad():
                doubler(torch.ones(1), torch.zeros(1))
        except ConflictError as error:
            caught.append(error)

    with spectrum_diffusion.enable(doubler, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=2) as run:
            run.step(0)
            doubler(torch.ones(1), torch.zeros(1))
            run.step(1)
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
    assert "second thread" in str(caught[0])


def test_disabled_handle_runs_no_more(doubler: Any) -> None:
    handle = spectrum_diffusion.enable(doubler)
    spectrum_diffusion.disable(doubler)
    with pytest.raises(SpectrumError, match="disabled or replaced"), handle.run(total_steps=5):
        pass
    assert intercepted(doubler) == []


def test_pipeline_made_from_an_enabled_one_is_plain() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    plain = entry.call(pipe, steps=8)
    with spectrum_diffusion.enable(pipe, "paper", warmup=2), pytest.warns(spectrum_diffusion.SpectrumWarning):
        other = type(pipe)(**pipe.components)
        other.set_progress_bar_config(disable=True)
        assert torch.equal(entry.call(other, steps=8), plain)
    assert torch.equal(entry.call(other, steps=8), plain)
    assert intercepted(pipe.transformer) == []


def test_model_that_outlives_its_enabled_pipeline_is_left_plain() -> None:
    pipe = PIPELINES["flux"].build()
    model = pipe.transformer
    spectrum_diffusion.enable(pipe)
    assert intercepted(model)
    del pipe
    gc.collect()
    assert intercepted(model) == []


def test_bare_model_compiled_after_enable_is_disabled_whole(doubler: Any) -> None:
    spectrum_diffusion.enable(doubler)
    doubler.compile(backend="eager")
    spectrum_diffusion.disable(doubler)
    assert intercepted(doubler) == []


def test_fewer_steps_refuses_sigmas_that_would_override_it() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "fewer-steps"), pytest.raises(ValueError, match="leave sigmas out"):
        entry.call(pipe, steps=3, sigmas=[1.0, 0.5, 0.25])
