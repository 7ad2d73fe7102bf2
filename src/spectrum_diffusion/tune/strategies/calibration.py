"""What a strategy is given: untouched runs, and the cost of any schedule with any weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.forecast import reuse_weights
from ...core.history import weighted_sum
from ...core.planned import Rows
from ...core.replay import StepCall
from ..driven import ScheduledPath, Session
from ..reference import Reference
from ..search import Limits, Schedule

Found = tuple[Schedule, Rows]
"""A schedule, and for each step the weights of the outputs evaluated up to it."""
Forecast = Callable[[Sequence[int], int], Sequence[float] | NDArray[np.float64]]
"""From the steps evaluated so far and a skipped step to weights."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a strategy may use.

    Attributes:
        session: runs the pipeline.
        references: untouched runs, with their outputs.
        count: wanted number of evaluations.
        limits: of a search.
        seed: of a search.
        on_tried: called after each schedule with the number of those tried and the seconds left.
    """

    session: Session
    references: Sequence[Reference]
    count: int
    limits: Limits
    seed: int
    on_tried: Callable[[int, float], None]

    @property
    def steps(self) -> int:
        return self.references[0].steps

    @property
    def outputs(self) -> torch.Tensor:
        """Outputs of the untouched runs, (T, N) with all pairs in a row."""
        runs = [torch.stack([output.flatten() for output in run.outputs]) for run in self.references]
        return torch.cat(runs, dim=1)

    @property
    def latents(self) -> torch.Tensor:
        """Samples of the untouched runs, (T + 1, N)."""
        runs = [torch.stack([sample.flatten() for sample in run.latents]) for run in self.references]
        return torch.cat(runs, dim=1)

    def errors(self, schedule: Schedule, rows: Rows) -> NDArray[np.float64]:
        """Relative squared errors of the final latents where the pairs are sampled with a plan, (B,)."""
        return np.concatenate([reference.errors(final) for reference, final in self._played(schedule, rows)])

    def distance(self, schedule: Schedule, rows: Rows, untouched: int) -> float:
        """Sum of the absolute errors of the final latents where the pairs are sampled with a plan.

        Args:
            schedule: the evaluated steps.
            rows: the weights of every step.
            untouched: how many of the first steps are those of the untouched runs, so that their outputs are known.
        """
        pairs = self._played(schedule, rows, untouched)
        return sum(float((final.cpu().float() - reference.latents[-1]).abs().sum()) for reference, final in pairs)

    def _played(self, schedule: Schedule, rows: Rows, untouched: int = 0) -> Iterator[tuple[Reference, torch.Tensor]]:
        for reference in self.references:
            path = PlayingPath(schedule, rows, reference.steps, reference.outputs[:untouched])
            self.session.run(reference.pairs, path)
            assert path.final is not None
            yield reference, path.final


class PlayingPath(ScheduledPath):
    """Samples with the weights of a plan.

    Args:
        schedule: the evaluated steps.
        rows: the weights of every step.
        total: number of steps T.
        known: outputs of the first steps, for which the denoiser is not called.
    """

    def __init__(self, schedule: Schedule, rows: Rows, total: int, known: Sequence[torch.Tensor] = ()) -> None:
        super().__init__(schedule, total)
        self._rows, self._known = rows, known
        self._outputs: list[torch.Tensor] = []

    def knows(self, step: int) -> bool:
        return step < len(self._known)

    def observe(self, step: int, call: StepCall) -> None:
        self._outputs.append(self._known[step].to(call.output) if self.knows(step) else call.output.clone())

    def given(self, step: int, call: StepCall) -> torch.Tensor:
        return weighted_sum(self._rows[step], self._outputs)


def rows_of(schedule: Schedule, total: int, forecast: Forecast = reuse_weights) -> Rows:
    """The weights of every step: a forecast at skipped steps, the output itself at evaluated ones."""
    rows = []
    for step in range(total):
        kept = [evaluated for evaluated in schedule if evaluated <= step]
        row = reuse_weights(kept, step) if step in schedule else forecast(kept, step)
        rows.append([float(weight) for weight in row])
    return rows


def even(total: int, count: int) -> Schedule:
    """Steps evenly apart, the first and the last among them."""
    return tuple(round(j * (total - 1) / max(1, count - 1)) for j in range(count))
