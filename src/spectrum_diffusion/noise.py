"""Detects samplers that add noise at each step, by the random numbers drawn between two calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class NoiseWatch:
    """Compares the states of random number generators after one denoiser call and before the next.

    Args:
        arguments: the arguments of the pipeline's call. Generators among them are watched, and torch's default ones.

    Attributes:
        by_scheduler: whether the scheduler drew numbers in its last step; None if no step of it was seen.
    """

    def __init__(self, arguments: Iterable[Any]) -> None:
        values = [item for value in arguments for item in (value if isinstance(value, (list, tuple)) else [value])]
        self._generators = [value for value in values if isinstance(value, torch.Generator)]
        self._states: list[torch.Tensor] | None = None
        self.by_scheduler: bool | None = None

    def mark(self, device: torch.device) -> None:
        """Record the states after a call on ``device``."""
        self._device, self._states = device, self._read(device)

    def drawn(self) -> bool:
        """Whether random numbers were drawn since :meth:`mark`."""
        return self._states is not None and self._differ(self._states)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Watch what the scheduler draws in the step that the block takes."""
        before = self._read(self._device) if self._states is not None else None
        yield
        if before is not None:
            self.by_scheduler = self._differ(before)

    def forget(self) -> None:
        """Forget the states: a new sampling loop draws its initial noise, which is not added at a step."""
        self._states = None

    def _differ(self, states: list[torch.Tensor]) -> bool:
        pairs = zip(states, self._read(self._device), strict=True)
        return any(not torch.equal(before, after) for before, after in pairs)

    def _read(self, device: torch.device) -> list[torch.Tensor]:
        states = [torch.get_rng_state(), *(generator.get_state() for generator in self._generators)]
        return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
