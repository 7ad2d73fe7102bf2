"""Finds the sampling loop and the step of a denoiser call from the schedulers of the running pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .core.calls import Arguments
from .discovery import schedulers_of
from .errors import InvalidOptionError

TIMESTEP_NAMES = ("timestep", "timesteps", "timestep_ratio", "t", "r")
"""Names of the argument that holds the timestep, across denoisers."""

TOLERANCE = 0.004
"""Relative error of a timestep in bfloat16, which has 8 significant bits."""


class Schedulers:
    """The schedulers of a pipeline and of the pipelines inside it; tells when one of them starts a sampling loop.

    A loop starts when a scheduler has new timesteps. Timesteps from before the generation belong to an earlier one. A
    pipeline may also restore a scheduler from a copy at each step (MultiDiffusion, one copy for each window): its
    timesteps are another tensor, but the loop goes on.
    """

    def __init__(self, pipe: Any) -> None:
        self._places = schedulers_of(pipe)
        # The tensors are kept: a new one could otherwise be created at the address of an old one.
        self._timesteps = [self._read(owner, name) for owner, name in self._places]
        self._clock: SchedulerClock | None = None

    def new_loop(self, call: Arguments, model: nn.Module | None) -> SchedulerClock | None:
        """The clock of the loop that a call of ``model`` starts, if it starts one.

        Of several with new timesteps, that of the pipeline around the model has priority, then the main one.
        """
        current = [self._read(owner, name) for owner, name in self._places]
        changed = [
            place for place, old, new in zip(self._places, self._timesteps, current, strict=True) if new is not old
        ]
        self._timesteps = current
        if not changed:
            return None
        owner, name = max(changed, key=lambda place: (_has(place[0], model), place[1] == "scheduler"))
        scheduler = getattr(owner, name)
        if self._clock is not None and self._clock.continues(scheduler, call):
            return None
        # num_timesteps counts the loop of the main scheduler.
        self._clock = SchedulerClock(scheduler, owner if name == "scheduler" else None)
        return self._clock

    @staticmethod
    def _read(owner: Any, name: str) -> Any:
        return getattr(getattr(owner, name, None), "timesteps", None)


class SchedulerClock:
    """Reads the step of each call in one sampling loop.

    It uses the scheduler's own count (``step_index``; ``counter`` of PNDM), or else the place of the call's timestep in
    ``scheduler.timesteps``. Steps count from where the loop starts, which is not 0 in image-to-image.

    Args:
        scheduler: the scheduler, after its ``set_timesteps``.
        pipe: the pipeline whose ``num_timesteps`` counts the loop, if there is one.
    """

    def __init__(self, scheduler: Any, pipe: Any = None) -> None:
        self._scheduler, self._pipe = scheduler, pipe
        self._timesteps = scheduler.timesteps
        self._start: int | None = getattr(scheduler, "begin_index", None)
        self._uncounted = False  # calls came before the scheduler had an index
        self._first: tuple[float, float] | None = None  # extent of the first call's timestep
        self._first_place: int | None = None
        self._moved = False  # the timestep changed, but the scheduler was not stepped
        self._values: list[float] | None = None
        self._place = 0
        self._last: int | None = None  # step of the last call

    @property
    def scheduler(self) -> Any:
        """The scheduler, for its steps to be answered."""
        return self._scheduler

    @property
    def scheduler_name(self) -> str:
        return type(self._scheduler).__name__

    @property
    def total(self) -> int:
        left = len(self._timesteps) - (self._start or 0)
        set_by_call = getattr(self._pipe, "num_timesteps", None)  # SDXL's denoising_end ends the loop early
        return min(left, set_by_call) if isinstance(set_by_call, int) and set_by_call > 0 else left

    def continues(self, scheduler: Any, call: Arguments) -> bool:
        """Whether a call, with equal timesteps in another tensor, is at the last step of this loop or at the next."""
        is_fresh = getattr(scheduler, "step_index", 0) is None
        if is_fresh or self._last is None or not _equal(self._timesteps, scheduler.timesteps):
            return False
        last, self._scheduler = self._last, scheduler
        step = self.locate(call)
        return step is not None and step > 0 and step in (last, last + 1)

    def locate(self, call: Arguments) -> int | None:
        self._last = self._locate(call)
        return self._last

    def _locate(self, call: Arguments) -> int | None:
        if hasattr(self._scheduler, "step_index"):
            index = self._scheduler.step_index
            return self._before_first_step(call) if index is None else self._from_index(index)
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
            raise InvalidOptionError(f'{self.scheduler_name} has no noise levels for this time axis: use time="index"')
        return levels[start : start + self.total].tolist()

    @property
    def is_flow(self) -> bool:
        # All levels count: those of image-to-image may end below 1 where the noise is added to the signal.
        sigmas = getattr(self._scheduler, "sigmas", None)
        return sigmas is not None and bool(torch.as_tensor(sigmas).max() <= 1.0)

    def _from_index(self, index: int) -> int:
        if self._uncounted and not self._moved:  # one step since the first call
            self._start, self._uncounted = index - 1, False
        if self._start is None:
            self._start = index
        return index - self._start

    def _before_first_step(self, call: Arguments) -> int | None:
        """The step while the scheduler has no index, which many schedulers set only in their first ``step``.

        The step is 0, unless the timestep changes. Then the pipeline steps copies of the scheduler (SkyReels-V2), and
        only the timestep tells the step.
        """
        extent = _extent(call)
        place = self._place_of(extent)
        if not self._uncounted:
            self._uncounted, self._first, self._first_place = True, extent, place
            if self._start is None and place is not None and extent is not None and extent[0] > 1:
                self._start = place  # a timestep up to 1 is scaled or reversed, and could match by chance
            return 0
        if extent == self._first:
            return 0
        self._moved = True
        return None if place is None or self._first_place is None else place - self._first_place

    def _from_timestep(self, call: Arguments) -> int | None:
        extent = _extent(call)
        place = self._place_of(extent)
        if place is None and self._start is not None and extent == self._first:  # the loop begins again
            place = self._place = self._start
        if place is None:
            return None
        if self._start is None:
            self._start, self._first = place, extent
        return place - self._start

    def _place_of(self, extent: tuple[float, float] | None) -> int | None:
        """The place of a timestep among the scheduler's, from the last place on; None if frames differ in timestep."""
        if extent is None or extent[0] != extent[1]:
            return None
        if self._values is None:
            self._values = torch.as_tensor(self._timesteps).double().tolist()
        rest = self._values[self._place :]
        for value in (extent[0], 1000 * extent[0]):  # flow models take the timestep as a fraction
            nearest = min(range(len(rest)), key=lambda i: abs(rest[i] - value))
            if abs(rest[nearest] - value) <= TOLERANCE * max(1.0, abs(value)):
                self._place += nearest
                return self._place
        return None


def _has(pipe: Any, model: nn.Module | None) -> bool:
    return any(component is model for component in pipe.components.values())


def _equal(timesteps: Any, others: Any) -> bool:
    first, second = torch.as_tensor(timesteps), torch.as_tensor(others)
    return first.shape == second.shape and bool((first.cpu() == second.cpu()).all())


def _extent(call: Arguments) -> tuple[float, float] | None:
    """Least and largest timestep of a call. They differ if frames or tokens have timesteps of their own."""
    timestep = next((value for name in TIMESTEP_NAMES if (value := call.named(name)) is not None), None)
    if timestep is None:
        return None
    values = torch.as_tensor(timestep).flatten()
    if values.numel() == 1:
        return float(values[0]), float(values[0])
    least, largest = torch.stack(torch.aminmax(values)).tolist()
    return least, largest
