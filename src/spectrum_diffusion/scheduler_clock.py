"""Read the step of a denoiser's call from the scheduler of the running pipeline."""

from __future__ import annotations

from typing import Any

import torch

from .core.calls import Arguments
from .errors import InvalidOptionError


class SchedulerClock:
    """Reads the step from the scheduler of the running call.

    In order: the scheduler's own count (``step_index``; ``counter`` of PNDM), else the place of the call's timestep in
    ``scheduler.timesteps``. Steps are counted from where the run begins, which is later in image-to-image.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._scheduler = pipe, pipe.scheduler
        self._timesteps = self._scheduler.timesteps
        self._start: int | None = getattr(self._scheduler, "begin_index", None)
        self._uncounted = False  # calls were made before the scheduler had an index
        self._values: list[float] | None = None
        self._place = 0

    def is_current(self) -> bool:
        """Whether the scheduler's timesteps are still those of this loop."""
        return self._pipe.scheduler is self._scheduler and self._scheduler.timesteps is self._timesteps

    @property
    def total(self) -> int:
        left = len(self._timesteps) - (self._start or 0)
        set_by_call = getattr(self._pipe, "num_timesteps", None)  # SDXL's denoising_end cuts the loop short
        return min(left, set_by_call) if isinstance(set_by_call, int) and set_by_call > 0 else left

    def locate(self, call: Arguments) -> int | None:
        if hasattr(self._scheduler, "step_index"):
            return self._from_index(self._scheduler.step_index)
        if hasattr(self._scheduler, "counter"):
            return int(self._scheduler.counter)
        return self._from_timestep(call)

    def sigmas(self) -> list[float]:
        start, timesteps = self._start or 0, torch.as_tensor(self._timesteps).double()
        if (sigmas := getattr(self._scheduler, "sigmas", None)) is not None and len(sigmas) >= len(timesteps):
            levels = torch.as_tensor(sigmas).double()
        elif (alphas := getattr(self._scheduler, "alphas_cumprod", None)) is not None:
            kept = torch.as_tensor(alphas).double()[timesteps.long().cpu()]
            levels = ((1 - kept) / kept).sqrt()
        else:
            raise InvalidOptionError(
                f'{type(self._scheduler).__name__} tells no noise levels, so time must be "index" with it'
            )
        return levels[start : start + self.total].tolist()

    def _from_index(self, index: int | None) -> int:
        if index is None:  # the first step: many schedulers find their index only in step()
            self._uncounted = True
            return 0
        if self._start is None:
            self._start = index - 1 if self._uncounted else index
        return index - self._start

    def _from_timestep(self, call: Arguments) -> int | None:
        timestep = call.named("timestep")
        if timestep is None:
            return None
        if self._values is None:
            self._values = torch.as_tensor(self._timesteps).double().tolist()
        value = float(torch.as_tensor(timestep).flatten()[0])
        rest = self._values[self._place :]
        nearest = min(range(len(rest)), key=lambda i: abs(rest[i] - value))
        if abs(rest[nearest] - value) > 0.004 * max(1.0, abs(value)):  # bfloat16 keeps 8 bits
            return None
        self._place += nearest
        if self._start is None:
            self._start = self._place
        return self._place - self._start


STOCHASTIC = ("Ancestral", "SDE", "LCM", "TCD", "DDPM", "CogVideoXDPM")


def is_stochastic(scheduler: Any) -> bool:
    """Whether the scheduler adds noise at each step, by its class or configuration."""
    config = getattr(scheduler, "config", {})
    by_config = "sde" in str(config.get("algorithm_type", "")) or config.get("stochastic_sampling", False)
    return bool(by_config) or any(part in type(scheduler).__name__ for part in STOCHASTIC)
