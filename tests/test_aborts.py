"""A generation that fails leaves nothing behind: no feature, no attribute; the next one is equal to a first one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from aborts import AbortError, fail_in_denoiser, kept_features, modules_of, state_of
from pipelines import PIPELINES

import spectrum_diffusion

NAMES = ["flux", "sd3", "wan", "wan22", "hunyuan-video", "sdxl", "flux-img2img", "sdxl-inpaint"]
STEPS = 10
OPTIONS = {"method": "spectrum-blend", "warmup": 2}
"""At the last block, so that a part of the denoiser runs at every step."""
EVERYWHERE = {"last block": OPTIONS, "output": {"warmup": 2}, "sampler": {"site": "sampler"}}
everywhere = pytest.mark.parametrize("options", EVERYWHERE.values(), ids=EVERYWHERE.keys())
pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def cases() -> list[Any]:
    """First, middle and last step of each pipeline; the others are slow."""
    parameters = []
    for name in NAMES:
        total = PIPELINES[name].total(STEPS)
        for step in range(total):
            marks = () if step in (0, total // 2, total - 1) else (pytest.mark.slow,)
            parameters.append(pytest.param(name, step, marks=marks, id=f"{name}-{step}"))
    return parameters


def check_nothing_is_left_and_next_run_is_right(
    name: str, run: Callable[[Any], Any], options: dict[str, Any] = OPTIONS
) -> None:
    """``run`` a failing generation of an enabled pipeline; then a clean one is that of a fresh pipeline."""
    entry = PIPELINES[name]
    fresh, pipe = entry.build(), entry.build()
    with spectrum_diffusion.enable(fresh, **options):
        expected = entry.call(fresh, steps=STEPS)
    entry.call(pipe, steps=2)  # diffusers' own attributes of a first run are there
    handle = spectrum_diffusion.enable(pipe, **options)
    before, scheduler = state_of(pipe), type(pipe.scheduler)
    with pytest.raises(AbortError):
        run(pipe)
    assert kept_features() == []
    assert state_of(pipe) == before
    assert type(pipe.scheduler) is scheduler
    assert all("cache_context" not in vars(model) for model in modules_of(pipe).values())
    assert torch.equal(entry.call(pipe, steps=STEPS), expected)
    assert handle.summary().steps == entry.total(STEPS)
    assert state_of(pipe) == before


@pytest.mark.parametrize(("name", "step"), cases())
def test_exception_in_the_denoiser(name: str, step: int) -> None:
    entry = PIPELINES[name]

    def run(pipe: Any) -> None:
        undo = fail_in_denoiser(pipe, entry, step)
        try:
            entry.call(pipe, steps=STEPS)
        finally:
            undo()

    check_nothing_is_left_and_next_run_is_right(name, run)


@everywhere
@pytest.mark.parametrize(("name", "step"), cases())
def test_exception_in_the_callback(name: str, step: int, options: dict[str, Any]) -> None:
    seen = []

    def callback(pipe: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(at)
        if at == step:
            raise AbortError
        return tensors

    entry = PIPELINES[name]
    check_nothing_is_left_and_next_run_is_right(
        name, lambda pipe: entry.call(pipe, steps=STEPS, callback_on_step_end=callback), options
    )
    assert seen == list(range(step + 1))


@everywhere
@pytest.mark.parametrize("step", [0, 5, 9])
@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_exception_in_on_step(name: str, step: int, options: dict[str, Any]) -> None:
    entry = PIPELINES[name]
    failing = [True]

    def on_step(at: int, *_: Any) -> None:
        if failing[0] and at == step:
            raise AbortError

    fresh, pipe = entry.build(), entry.build()
    with spectrum_diffusion.enable(fresh, **options):
        expected = entry.call(fresh, steps=STEPS)
    spectrum_diffusion.enable(pipe, on_step=on_step, **options)
    with pytest.raises(AbortError):
        entry.call(pipe, steps=STEPS)
    assert kept_features() == []
    failing[0] = False
    assert torch.equal(entry.call(pipe, steps=STEPS), expected)


@pytest.mark.parametrize("where", ["first", "inner"])
def test_summary_of_an_aborted_run_tells_what_was_done(where: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    handle = spectrum_diffusion.enable(pipe, **OPTIONS)
    undo = fail_in_denoiser(pipe, entry, 0 if where == "first" else 4)
    with pytest.raises(AbortError):
        entry.call(pipe, steps=STEPS)
    undo()
    if where == "first":
        (trace,) = handle._traces.values()
        assert trace.calls == []
    else:
        assert handle.summary().steps == 4
    spectrum_diffusion.disable(pipe)
    assert torch.equal(entry.call(pipe, steps=STEPS), entry.call(entry.build(), steps=STEPS))
