"""How far a method strays from the full run, step by step: the paper's Tables 5 and 8.

    RMSE_i = sqrt(mean((z_i − z_i^ref)²))

z_i are the latents after step i of 1 … T, in the units of the sampler, of the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import InvalidOptionError


@dataclass
class LatentPath:
    """Keeps the latents after chosen steps of a generation, as a callback of a diffusers pipeline.

        path = LatentPath(steps=(10, 50))
        pipe(prompt, callback_on_step_end=path)

    Attributes:
        steps: the steps to keep, counted from 1 as in the paper; None for all.
        latents: step → a copy in float32 on the CPU.
        then: another callback, called after this one; the pipeline gets its return value.
    """

    steps: Iterable[int] | None = None
    latents: dict[int, torch.Tensor] = field(default_factory=dict)
    then: Any = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            self.steps = frozenset(self.steps)
            if any(step < 1 for step in self.steps):
                raise InvalidOptionError(f"steps {sorted(self.steps)} are counted from 1: leave out smaller ones")

    def __call__(self, pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Called by diffusers at the end of each step, counted from 0."""
        if "latents" not in kwargs:
            raise InvalidOptionError(
                "the pipeline's callback gets no latents: leave callback_on_step_end_tensor_inputs as it is, "
                "or add 'latents' to it"
            )
        if step == 0:
            self.latents.clear()  # another generation with the same object
        if self.steps is None or step + 1 in self.steps:
            # A copy: samplers write into their latents.
            self.latents[step + 1] = kwargs["latents"].detach().to("cpu", torch.float32, copy=True)
        return kwargs if self.then is None else self.then(pipe, step, timestep, kwargs)


def latent_rmse(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean squared difference of two tensors of the same shape, in float64.

    Raises:
        InvalidOptionError: the shapes differ, or a value is NaN or infinite.
    """
    if latents.shape != reference.shape:
        raise InvalidOptionError(
            f"the latents have the shape {tuple(latents.shape)}, the reference's {tuple(reference.shape)}: "
            "compare runs of the same size and batch"
        )
    value = (latents.double() - reference.double()).square().mean().sqrt().item()
    if not value < float("inf"):
        raise InvalidOptionError(f"the RMSE is {value}: a run has NaN or infinite latents, check its dtype")
    return value
