"""Fewer steps of the same sampler, or of a better one: the baseline that every user already has.

Nothing is forecast. DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095) and UniPC (Zhao et al., 2023, arXiv 2302.04867)
are higher-order solvers for few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.forecast import Weights
from ..core.schedule import at_most
from ..errors import InvalidOptionError
from .base import SOLVERS, Method


@dataclass(frozen=True, kw_only=True)
class FewerSteps(Method):
    """The sampler takes only as many steps as the schedule would evaluate (14 instead of 50 by default).

    With ``speedup`` it takes ``⌊steps / speedup⌋`` steps.

    Attributes:
        site: without effect, since nothing is forecast.
        evaluated: not to be given, since every step that is taken is evaluated.
        speedup: wanted steps / evaluations, in place of ``interval``, ``warmup`` and ``slope``.
        solver: "dpm++" or "unipc" instead of the pipeline's own scheduler, if its prediction type allows; None keeps
            the scheduler.
    """

    site: str = "output"  # nothing is forecast, so any denoiser will do
    solver: str | None = None

    sets_steps: ClassVar[bool] = True
    found_by_speedup: ClassVar[tuple[str, ...]] = ("interval", "warmup", "slope")
    limits: ClassVar[str] = "every pipeline that takes num_inference_steps; solvers if its scheduler allows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver is not None:
            self.check_choice("solver", SOLVERS)
        if self.evaluated is not None:
            raise InvalidOptionError(
                "fewer-steps evaluates all of its steps and cannot take evaluated: pass speedup, or interval and slope"
            )

    def sampler_steps(self, steps: int) -> int:
        if self.speedup is not None:
            return max(1, at_most(steps, self.speedup))
        return len(super().schedule(steps))

    def schedule(self, total: int) -> tuple[int, ...]:
        return tuple(range(total))

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        raise AssertionError("fewer-steps forecasts nothing")
