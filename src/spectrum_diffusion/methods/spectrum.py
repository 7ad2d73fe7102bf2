"""The default: a damped line that learns from hindsight, and a path that is corrected at each evaluated step.

An output is extrapolated along the line through the last two evaluated ones, damped by how well that line
foretold the latest, ``α = ⟨actual change, foretold change⟩/‖foretold change‖²`` (a gain from the latest difference, as
in Aitken's extrapolation). When an output is evaluated, the scheduler takes the steps of the gap again with outputs
interpolated through the three nearest evaluated ones, without a second evaluation (a predictor-corrector scheme PEC,
as UniPC's corrector; Zhao et al., 2023, arXiv 2302.04867). The correction has the strength ``min(1, 2α)``: where lines
do not hold, a full correction overshoots too. Evaluated steps are Chebyshev-Lobatto nodes along the run's noise levels,
see ``schedule.nodes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

from ..core import schedule
from ..errors import InvalidOptionError
from .base import SITES, Scheduled
from .rows import Rows, check_rows

if TYPE_CHECKING:
    import torch

    from ..core.controller import Controller
    from ..core.history import History
    from ..core.path import Path
    from ..core.schedule import Noise


FEWEST = 8
"""Evaluations that are left unless a speedup is asked for: with fewer, fewer steps of the sampler come closer."""

SMALLEST = 1e-12
"""The smallest ``tolerance``."""

MOST_GAIN = 1e6
"""A correction is at full strength long before."""

TOLERANT_SITES = ("output", "sampler")
"""The sites at which ``tolerance`` works."""


@dataclass(frozen=True, kw_only=True)
class Spectrum(Scheduled):
    """A damped line that learns from each evaluated step, and a path that is corrected there (14 of 50 by default).

    Attributes:
        speedup: steps / evaluations, rounded to the next whole number of evaluations below; 3.5 by default, but never
            fewer than 8 evaluations.
        warmup: number W ≥ 1 of steps evaluated at the start; the rest of the schedule spans the other steps.
        gain: strength of the correction, ``min(1, gain·α)``; 0 corrects nothing.
        tolerance: evaluate whenever needed to keep the forecasts' relative errors near this number, instead of steps
            that are known in advance; the samples of a batch share the steps, and their largest error decides.
        max_nfe: the most evaluations that ``tolerance`` may use; default: every step.
        site: "output" forecasts the denoiser's output, for each guidance branch by itself; "sampler" forecasts what the
            scheduler is given, once for all branches; "last_block" and "module" forecast features within the denoiser.
        step_weights: for each step the weights of the outputs evaluated up to it, or of the guidance branches of each
            of them, which `spectrum tune` fits. They need ``evaluated`` and the site "sampler", and replace line and
            correction.
    """

    site: str = "output"
    warmup: int = 1
    gain: float = 2.0
    tolerance: float | None = None
    max_nfe: int | None = None
    step_weights: Rows | None = None

    sites: ClassVar[tuple[str, ...]] = (*SITES, "sampler")
    default_speedup: ClassVar[float] = 3.5
    noise: ClassVar[Noise | None] = None
    """The noise of the run; :meth:`paced` sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("gain", least=0.0, most=MOST_GAIN)
        self.check_integer("warmup", least=1)
        if self.evaluated is not None and self.warmup > 1:
            raise InvalidOptionError(
                f"evaluated lists every evaluated step, and warmup={self.warmup} would add to them: give only one of "
                "them"
            )
        self._check_tolerance()
        if self.step_weights is not None:
            self._check_weights()

    def _check_tolerance(self) -> None:
        if self.max_nfe is not None:
            self.check_integer("max_nfe", least=1)
        if self.tolerance is None:
            if self.max_nfe is None:
                return
            raise InvalidOptionError(
                f"max_nfe={self.max_nfe} limits what tolerance chooses, but tolerance is not given: pass "
                f"tolerance=0.25 beside it, or for a fixed number of evaluations speedup=T/{self.max_nfe} of T steps"
            )
        self.check_number("tolerance", least=0.0)
        if self.tolerance < SMALLEST:
            raise InvalidOptionError(
                f"tolerance={self.tolerance:g} is out of range, since no forecast is that exact: give {SMALLEST:g} or "
                "more"
            )
        for name in ("evaluated", "speedup"):
            if getattr(self, name) is not None:
                raise InvalidOptionError(
                    f"tolerance and {name} both determine the evaluated steps: pass only one of them, and max_nfe "
                    "beside tolerance as a limit"
                )
        if self.site not in TOLERANT_SITES:
            raise InvalidOptionError(
                f'tolerance compares outputs with their forecasts, but site="{self.site}" forecasts features within '
                f'the denoiser: use site="{TOLERANT_SITES[0]}" or "{TOLERANT_SITES[1]}"'
            )

    @property
    def decides_while_running(self) -> bool:
        return self.tolerance is not None

    @property
    def decides_from_content(self) -> bool:
        return self.tolerance is not None

    def controller(self, total: int) -> Controller | None:
        if self.tolerance is None:
            return None
        from ..core.controller import Controller

        least = schedule.fewest_nodes(total, min(self.warmup, total))
        most = total if self.max_nfe is None else min(self.max_nfe, total)
        if most < least:
            raise InvalidOptionError(
                f"max_nfe={most} is too low for {total} steps: no more than a third of the run may be forecast from "
                f"one evaluated step, so pass a number within {least} … {total}"
            )
        return Controller(self.tolerance, least, most)

    def nodes(self, total: int, count: int) -> Sequence[int]:
        return schedule.nodes(total, count, min(self.warmup, count), self.noise)

    def begin(self, total: int) -> None:
        if self.controller(total) is None:
            super().begin(total)

    def _check_weights(self) -> None:
        if self.evaluated is None or self.site != "sampler":
            raise InvalidOptionError(
                f"step_weights need the steps that they weigh and the scheduler to give them to, but evaluated is "
                f'{self.evaluated} and site is {self.site!r}: pass evaluated=[…] and site="sampler", or a plan'
            )
        if self.gain != Spectrum.gain:
            raise InvalidOptionError(
                f"gain={self.gain:g} is the strength of a correction, which step_weights replace: leave out gain, or "
                "the plan"
            )
        object.__setattr__(self, "step_weights", check_rows(self.step_weights, self.evaluated))

    def path(self) -> Path:
        from ..core.path import Path  # imports torch, which takes seconds
        from ..core.planned import PlannedPath

        if self.step_weights is None:
            return Path(self.gain)
        return PlannedPath(tuple(self.evaluated or ()), self.step_weights)

    @property
    def window(self) -> int:
        from ..core.path import NODES

        return NODES

    def history(self, guided: Path | None = None, rows: int | None = None) -> Path:
        from ..core.path import Path  # imports torch, which takes seconds

        return Path(self.gain, guided, rows)

    def forecast(self, history: History, target: int, axis: Sequence[float]) -> Iterator[torch.Tensor]:
        return cast("Path", history).line(target)

    def schedule(self, total: int) -> tuple[int, ...]:
        if self.step_weights is not None and len(self.step_weights) != total:
            planned = len(self.step_weights)
            raise InvalidOptionError(
                f"step_weights are for {planned} steps, but this run has {total}: run {planned} steps, or make a plan "
                f"for {total} with `spectrum tune --steps {total}`"
            )
        if self.evaluated is not None:
            return tuple(schedule.explicit(total, self.evaluated))
        steps = schedule.nodes_for_speedup(
            total, self.speedup, self.warmup, default=self.default_speedup, least=FEWEST, noise=self.noise
        )
        return tuple(steps)

    def paced(self, noise: Noise | None) -> Spectrum:
        method = replace(self)  # without the steps that are kept for another run
        object.__setattr__(method, "noise", noise)
        return method

    def untouched(self, total: int) -> bool:
        # Steps or a speed-up that were asked for are no surprise.
        if self.tolerance is not None:
            return False
        return self.evaluated is None and self.speedup is None and len(self.schedule(total)) == total
