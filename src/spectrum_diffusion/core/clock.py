"""Clocks, which tell the step of a call, and the time axis of a forecast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ..errors import InvalidOptionError
from .calls import Arguments


class Clock(Protocol):
    """Tells the step of each call in a sampling loop."""

    @property
    def total(self) -> int:
        """Number of steps T of the loop."""

    def locate(self, call: Arguments) -> int | None:
        """The step of a call, 0 … T−1, or None if it is unknown."""

    def sigmas(self) -> Sequence[float]:
        """Noise level σ of each step, (T,).

        Raises:
            InvalidOptionError: the noise levels are unknown.
        """


@dataclass
class ManualClock:
    """The clock of the user's own sampling loop, which announces each step (:meth:`ManualRun.step`).

    Attributes:
        total: number of steps T.
        now: the current step.
        levels: noise level of each step, (T,).
    """

    total: int
    now: int | None = None
    levels: Sequence[float] | None = None

    def locate(self, call: Arguments) -> int | None:
        return self.now

    def sigmas(self) -> Sequence[float]:
        if self.levels is None:
            raise InvalidOptionError(
                'the time axes "sigma" and "log-snr" need noise levels, and this run has none: pass '
                "handle.run(total_steps, sigmas=…)"
            )
        return self.levels


CLIPPED = 1e-3
"""Smallest distance of a flow-matching σ from 0 and 1, where the log-SNR is infinite."""


def time_axis(kind: str, sigmas: Sequence[float]) -> tuple[float, ...]:
    """The time of each step by its noise level, scaled to run from 0 to T−1 like the steps.

    Args:
        kind: "sigma", or "log-snr": ``2 ln((1−σ)/σ)`` of flow matching (σ ≤ 1), else ``−2 ln σ``.
        sigmas: noise level of each step, (T,), falling.

    Raises:
        InvalidOptionError: two steps have one noise level, or the levels rise.
    """
    flow = max(sigmas) <= 1.0
    if kind == "sigma":
        values = [-float(sigma) for sigma in sigmas]
    elif flow:
        clipped = [min(max(float(sigma), CLIPPED), 1 - CLIPPED) for sigma in sigmas]
        values = [2 * math.log((1 - sigma) / sigma) for sigma in clipped]
    else:
        values = [-2 * math.log(max(float(sigma), 1e-10)) for sigma in sigmas]
    if any(after <= before for before, after in pairwise(values)):
        raise InvalidOptionError(
            f"time={kind!r} needs noise levels that fall at every step, but those of this scheduler do not: "
            'use time="index"'
        )
    span = (values[-1] - values[0]) or 1.0
    return tuple((len(values) - 1) * (value - values[0]) / span for value in values)
