"""The axes of time: what is a line in σ or in the log-SNR is forecast exactly on that axis, and on no other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pipelines import PIPELINES
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError
from spectrum_diffusion.core.calls import Arguments
from spectrum_diffusion.core.clock import ManualClock, noise_of, time_axis
from spectrum_diffusion.core.schedule import Noise
from spectrum_diffusion.scheduler_clock import SchedulerClock

FLOW = [1.0 - i / 12 - 0.004 * (i % 3) for i in range(12)]  # uneven, falling
VARIANCE = [14.6 * (1 - i / 12) ** 3 + 0.03 for i in range(12)]


class OfNoise(nn.Module):
    """A denoiser that answers with a function of the noise level."""

    def __init__(self, function: Callable[[float], float]) -> None:
        super().__init__()
        self.function = function

    def forward(self, sample: torch.Tensor, timestep: float) -> torch.Tensor:
        return torch.full_like(sample, self.function(timestep))


def worst_error(function: Callable[[float], float], sigmas: list[float], method: str, **options: object) -> float:
    model = OfNoise(function).eval()
    errors = []
    with spectrum_diffusion.enable(model, method, site="output", **options) as handle, torch.no_grad():
        with handle.run(len(sigmas), sigmas=sigmas) as run:
            for step, sigma in enumerate(sigmas):
                run.step(step)
                value = model(torch.zeros(2, dtype=torch.float64), sigma)[0].item()
                errors.append(abs(value - function(sigma)))
        assert handle.summary().nfe < len(sigmas)
    return max(errors)


@pytest.mark.parametrize(
    ("time", "function", "sigmas"),
    [
        ("sigma", lambda sigma: 3.0 - 2.0 * sigma, FLOW),
        ("sigma", lambda sigma: 3.0 - 2.0 * sigma, VARIANCE),
        ("log-snr", lambda sigma: 1.0 + 0.5 * math.log(sigma / (1 - sigma)), FLOW[1:]),
        ("log-snr", lambda sigma: 1.0 + 0.5 * math.log(sigma), VARIANCE),
    ],
)
@pytest.mark.parametrize(
    ("method", "options"),
    [("taylor", {}), ("taylorseer", {"interval": 3, "warmup": 3}), ("paper", {"ridge": 0.0, "degree": 1})],
)
def test_line_on_its_axis_is_forecast_exactly(time, function, sigmas, method, options) -> None:
    assert worst_error(function, sigmas, method, time=time, **{"warmup": 3, **options}) < 1e-9
    assert worst_error(function, sigmas, method, **{"warmup": 3, **options}) > 1e-4


def test_axis_runs_from_first_to_last_step() -> None:
    for kind, sigmas in (("sigma", FLOW), ("log-snr", FLOW), ("log-snr", VARIANCE)):
        axis = time_axis(kind, ManualClock(len(sigmas), levels=sigmas))
        assert axis[0] == 0
        assert axis[-1] == pytest.approx(len(sigmas) - 1)
        assert list(axis) == sorted(axis)


def test_even_noise_levels_are_the_steps_themselves() -> None:
    assert time_axis("sigma", ManualClock(4, levels=[1.0, 0.75, 0.5, 0.25])) == pytest.approx((0, 1, 2, 3))


def call_with(*shape: int) -> Arguments:
    return Arguments(nn.Identity(), (torch.zeros(shape),), {}, nn.Identity())


def test_noise_is_that_of_the_latents() -> None:
    flow, added = ManualClock(3, levels=[0.8, 0.5, 0.2]), ManualClock(3, levels=[14.6, 0.5, 0.2])
    assert noise_of(flow, call_with(1, 4, 8, 32)) == Noise(pytest.approx((4.0, 1.0, 0.25)), size=4 * 8 * 32)
    assert noise_of(added, call_with(1, 16, 5, 8, 8)) == Noise((14.6, 0.5, 0.2), size=16 * 5 * 8 * 8)
    assert noise_of(added, call_with(1, 4096, 64)) == Noise((14.6, 0.5, 0.2), size=4096 * 64)
    assert noise_of(ManualClock(3), call_with(1, 4, 8, 8)) is None
    assert noise_of(ManualClock(2, levels=[0.2, 0.8]), call_with(1, 4, 8, 8)) is None


def test_image_to_image_of_added_noise_is_not_taken_for_flow_matching() -> None:
    pipe = PIPELINES["sdxl"].build()
    pipe.scheduler.set_timesteps(50)
    pipe.scheduler.set_begin_index(40)
    clock = SchedulerClock(pipe.scheduler)
    assert max(clock.sigmas()) < 1
    noise = noise_of(clock, call_with(1, 4, 8, 8))
    assert noise is not None
    assert noise.ratios == tuple(clock.sigmas())


@pytest.mark.parametrize(
    "name", ["flux", "flux-img2img", "sd3", "wan", "sdxl", "sdxl-img2img", "sdxl-dpmpp", "sdxl-unipc"]
)
def test_noise_levels_are_those_of_the_scheduler(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    used: list[float] = []
    clocks: list[SchedulerClock] = []
    step = pipe.scheduler.step

    def noting(*args, **kwargs):
        if not clocks:
            clocks.append(SchedulerClock(pipe.scheduler, pipe))
        result = step(*args, **kwargs)
        used.append(float(pipe.scheduler.sigmas[pipe.scheduler.step_index - 1]))
        return result

    pipe.scheduler.step = noting
    entry.call(pipe, steps=10)
    assert clocks[0].sigmas() == pytest.approx(used)


def test_noise_levels_of_ddim_come_from_its_alphas() -> None:
    entry = PIPELINES["sdxl-ddim"]
    pipe = entry.build()
    entry.call(pipe, steps=10)
    kept = [float(pipe.scheduler.alphas_cumprod[t]) for t in pipe.scheduler.timesteps]
    assert SchedulerClock(pipe.scheduler, pipe).sigmas() == pytest.approx([math.sqrt((1 - a) / a) for a in kept])


@pytest.mark.parametrize("time", ["sigma", "log-snr"])
@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "sdxl", "sdxl-ddim"])
def test_pipelines_run_on_every_axis(name: str, time: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "spectrum-blend", time=time) as handle:
        on_axis = entry.call(pipe, steps=20)
        assert handle.summary().nfe < 20
    with spectrum_diffusion.enable(pipe, "spectrum-blend"):
        assert not torch.equal(torch.as_tensor(on_axis), torch.as_tensor(entry.call(pipe, steps=20)))


def test_repeated_noise_levels_are_refused_by_name() -> None:
    pipe = PIPELINES["sdxl-heun"].build()
    with spectrum_diffusion.enable(pipe, "taylor", time="sigma"), pytest.raises(InvalidOptionError, match='"index"'):
        PIPELINES["sdxl-heun"].call(pipe, steps=10)


def test_own_loop_must_tell_its_noise_levels() -> None:
    model = OfNoise(lambda sigma: sigma).eval()
    with spectrum_diffusion.enable(model, "taylor", site="output", time="sigma", warmup=2) as handle, torch.no_grad():
        with pytest.raises(InvalidOptionError, match="pass one for each step"):
            with handle.run(3, sigmas=[1.0, 0.5]):
                pass
        with handle.run(8) as run:
            run.step(0)
            with pytest.raises(InvalidOptionError, match="sigmas="):
                model(torch.zeros(2), 1.0)
    with pytest.raises(InvalidOptionError, match="index, sigma, log-snr"):
        spectrum_diffusion.make_method("taylor", time="seconds")
