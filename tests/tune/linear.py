"""A pipeline whose denoiser is a function of sample and timestep, for calibrations that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn

SIZE = 6
Field = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From sample (B, SIZE), share of the steps that are left (B, 1) and prompt (B, SIZE) to the output."""


class Denoiser(nn.Module):
    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field, self.calls = field, 0
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.field(hidden_states, timestep[:, None] / 1000, prompt)


class LinearPipeline(DiffusionPipeline):
    """Takes one prompt or a list; the latents are what it returns. Guidance above 1 has a branch without prompt."""

    def __init__(self, denoiser: Denoiser, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any,
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
        generator: Any = None,
        output_type: str = "latent",
    ) -> Any:
        self._guidance_scale = guidance_scale
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator]
        x = torch.cat([torch.randn(1, SIZE, generator=source) for source in generators])
        embeds = torch.stack([embedded(text) for text in prompts])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            output = self.predicted(x, t, embeds)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        return (x,)

    def predicted(self, x: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """The guided output; one call of the denoiser for both branches."""
        if self._guidance_scale <= 1:
            return self.denoiser(hidden_states=x, timestep=t.float().expand(len(x)), prompt=embeds)
        both = torch.cat([torch.zeros_like(embeds), embeds])
        output = self.denoiser(hidden_states=torch.cat([x, x]), timestep=t.float().expand(2 * len(x)), prompt=both)
        without, with_prompt = output.chunk(2)
        return without + self._guidance_scale * (with_prompt - without)


def embedded(text: str) -> torch.Tensor:
    """A vector of a prompt, (SIZE,)."""
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(sum(map(ord, text))))


def curved(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """A parabola in time, whatever the sample is: three outputs determine all others."""
    return prompt + 0.5 * t * prompt.flip(1) + 2 * t**2 * prompt.roll(2, 1)


def rough(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Depends on sample, time and prompt, and not linearly."""
    return torch.tanh(x.roll(1, 1) + 3 * t * prompt) + 0.3 * x + torch.sin(9 * t)


def diverging(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Grows with t where there is a prompt, and with t² where there is none, whatever the sample is."""
    empty = (prompt == 0).all(1, keepdim=True)  # (B, 1)
    return torch.where(empty, t**2 * torch.ones_like(prompt).cumsum(1), t * prompt)


def build(field: Field = rough, scheduler: Any = None) -> LinearPipeline:
    pipe = LinearPipeline(Denoiser(field).eval(), scheduler or FlowMatchEulerDiscreteScheduler(shift=2.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe
