"""Clocks, which tell the step of a call, and the time axis of a forecast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ..errors import InvalidOptionError
from .calls import Arguments
from .schedule import Noise


class Clock(Protocol):
    """Tells the step of each call in a sampling loop."""

    @property
    def total(self) -> int:
        """Number of steps T of the loop."""

    def locate(self, call: Arguments) -> int | None:
        """The step of a call, 0 … T−1, or None if it is unknown. T or more: the call comes after the loop."""

    def sigmas(self) -> Sequence[float]:
        """Noise level σ of each step, (T,).

        Raises:
            InvalidOptionError: the noise levels are unknown.
        """

    @property
    def is_flow(self) -> bool:
        """Whether the latents are ``(1−σ)·signal + σ·noise``, as in flow matching, and not ``signal + σ·noise``."""


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

    @property
    def is_flow(self) -> bool:
        return self.levels is not None and max(self.levels) <= 1.0


CLIPPED = 1e-3
"""Smallest distance of a flow-matching σ from 0 and 1, where the log-SNR is infinite."""


def noise_of(clock: Clock, call: Arguments) -> Noise | None:
    """The noise of the latents that a call denoises; None if its levels are unknown or rise."""
    try:
        sigmas = clock.sigmas()
    except InvalidOptionError:
        return None
    ratios = tuple(_ratio(float(sigma), clock.is_flow) for sigma in sigmas)
    if not ratios or any(after > before for before, after in pairwise(ratios)):
        return None
    return Noise(ratios, sum(sample[0].numel() for sample in call.samples if sample.dim()) or Noise.size)


def _ratio(sigma: float, is_flow: bool) -> float:
    if not is_flow:
        return sigma
    clipped = min(max(sigma, CLIPPED), 1 - CLIPPED)
    return clipped / (1 - clipped)


def time_axis(kind: str, clock: Clock) -> tuple[float, ...]:
    """The time of each step by its noise level, scaled to run from 0 to T−1 like the steps.

    Args:
        kind: "sigma"; or "log-snr", which is −2 ln of noise over signal.
        clock: knows the noise level of each step.

    Raises:
        InvalidOptionError: the noise levels are unknown, two steps have the same one, or they rise.
    """
    sigmas = [float(sigma) for sigma in clock.sigmas()]
    if kind == "sigma":
        values = [-sigma for sigma in sigmas]
    else:
        values = [-2 * math.log(max(_ratio(sigma, clock.is_flow), 1e-10)) for sigma in sigmas]
    if any(after <= before for before, after in pairwise(values)):
        raise InvalidOptionError(
            f"time={kind!r} needs noise levels that fall at every step, but those of this scheduler do not: "
            'use time="index"'
        )
    span = (values[-1] - values[0]) or 1.0
    return tuple((len(values) - 1) * (value - values[0]) / span for value in values)
