"""Corrected paths against a second, slow implementation: its own scheduler copies, its own sums in NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch
from pipelines import PIPELINES

import spectrum_diffusion

STEPS = 16
EVALUATED = [0, 2, 5, 9, 12, 15]
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "euler": d.EulerDiscreteScheduler.from_config,
    "ddim": lambda config: d.DDIMScheduler.from_config(config, clip_sample=False),
    "dpm++2m": d.DPMSolverMultistepScheduler.from_config,
    "unipc": d.UniPCMultistepScheduler.from_config,
    "pndm": lambda config: d.PNDMScheduler.from_config(config, skip_prk_steps=True),
    "pndm, runge-kutta": lambda config: d.PNDMScheduler.from_config(config, skip_prk_steps=False),
    "deis": d.DEISMultistepScheduler.from_config,
}


class SlowPath:
    """The method written a second time, for one sample: float64, whole histories, copies of the scheduler."""

    def __init__(self, scheduler: Any, gain: float) -> None:
        self.scheduler, self.gain = copy.deepcopy(scheduler), gain
        self.before: Any = None  # the scheduler before the last evaluated step
        self.start: torch.Tensor | None = None
        self.used: list[tuple[Any, torch.Tensor]] = []  # timestep and output of each step since then
        self.steps: list[int] = []
        self.outputs: list[np.ndarray] = []

    @property
    def alpha(self) -> float:
        if len(self.steps) < 3:
            return 1.0
        (s0, s1, s2), (a, b, c) = self.steps[-3:], self.outputs[-3:]
        foretold = (b - a) * (s2 - s1) / (s1 - s0)
        return float(np.clip(((c - b) * foretold).sum() / (foretold**2).sum(), 0, 1))

    def forecast(self, step: int, like: torch.Tensor) -> torch.Tensor:
        if len(self.steps) < 3:
            return tensor(self.outputs[-1], like)
        gap, horizon = self.steps[-1] - self.steps[-2], step - self.steps[-1]
        alpha = self.alpha
        if alpha >= 1 - 1e-9:
            distance = float(horizon)
        else:
            x = rate(max(alpha, 1e-3))
            distance = (1 - np.exp(-x / gap * horizon)) / (x / gap)
        line = self.outputs[-1] + (self.outputs[-1] - self.outputs[-2]) / gap * distance
        return tensor(line, like)

    def evaluated(self, step: int, t: Any, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        last = self.steps[-1] if self.steps else step
        self.steps.append(step)
        self.outputs.append(output.double().numpy())
        if step - last > 1:
            self.scheduler, sample = copy.deepcopy(self.before), self.start
            strength = min(1.0, self.gain * self.alpha)
            for since, (time, used) in enumerate(self.used):
                if since:
                    right = self.interpolated(last + since)
                    used = tensor((1 - strength) * used.double().numpy() + strength * right, used)
                sample = self.scheduler.step(used, time, sample).prev_sample
        self.before, self.start, self.used = copy.deepcopy(self.scheduler), sample, []
        return self.take(t, output, sample)

    def interpolated(self, step: int) -> np.ndarray:
        steps, outputs = self.steps[-3:], self.outputs[-3:]
        return sum(
            y * np.prod([(step - other) / (s - other) for other in steps if other != s])
            for s, y in zip(steps, outputs, strict=True)
        )

    def take(self, t: Any, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        self.used.append((t, output))
        return self.scheduler.step(output, t, sample).prev_sample


def rate(alpha: float) -> float:
    """The solution of (1 − e^(−x))/x = α by Newton's method in float64: the function is convex and falls."""
    x = 1e-6
    for _ in range(500):
        value, slope = -np.expm1(-x) / x - alpha, (np.exp(-x) * (x + 1) - 1) / x**2
        x -= value / slope
    return float(x)


def tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(like.dtype)


def slow(
    pipe: Any, latents: torch.Tensor, embeds: torch.Tensor, negative: torch.Tensor, guidance: float, gain: float
) -> Any:
    """Stable Diffusion's own loop, with guidance by two calls, one sample."""
    pipe.scheduler.set_timesteps(STEPS)
    path = SlowPath(pipe.scheduler, gain)
    sample = latents * path.scheduler.init_noise_sigma
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step in EVALUATED:
            scaled = path.scheduler.scale_model_input(sample, t)
            with torch.no_grad():
                without, given = (pipe.unet(scaled, t, encoder_hidden_states=e).sample for e in (negative, embeds))
            sample = path.evaluated(step, t, without + guidance * (given - without), sample)
        else:
            sample = path.take(t, path.forecast(step, sample), sample)
    return sample


@pytest.mark.parametrize("gain", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_corrected_paths_are_those_of_a_slow_replay(name: str, gain: float) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = SCHEDULERS[name](pipe.scheduler.config)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    width = pipe.unet.config.cross_attention_dim
    embeds, negative = (torch.randn(1, 7, width, generator=generator) for _ in range(2))
    expected = slow(pipe, latents, embeds, negative, 3.0, gain)
    with spectrum_diffusion.enable(pipe, evaluated=EVALUATED, site="sampler", gain=gain) as handle:
        sampled = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            latents=latents.clone(),
            guidance_scale=3.0,
            num_inference_steps=STEPS,
            output_type="latent",
        ).images
    evaluated = handle.summary().evaluated
    assert evaluated == EVALUATED
    assert (sampled - expected).abs().max() < 1e-5 * expected.abs().max()
