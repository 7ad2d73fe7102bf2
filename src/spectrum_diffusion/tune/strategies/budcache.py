"""BudCache: a schedule searched for a fixed budget, with reuse (2026, arXiv 2606.13496).

The first max(1, n//4) steps are forced. Annealing and hill climbing minimise the error of the final latents, with the
forecast in the loop. Its reuse is of a residual within the denoiser; here it is that of the guided output.
"""

from __future__ import annotations

from dataclasses import replace

from ..reference import first
from ..search import Schedule, ScheduleSearch
from .calibration import Calibration, Found, even, rows_of

PAIRS = 8
"""Pairs on which schedules are compared: as many as judge those of our own search."""


def found(calibration: Calibration) -> Found:
    few = replace(calibration, references=first(calibration.references, PAIRS))
    total, count = calibration.steps, calibration.count
    forced = max(1, count // 4)

    def cost(schedule: Schedule) -> float:
        return float(few.errors(schedule, rows_of(schedule, total)).mean())

    start = (*range(forced - 1), *(forced - 1 + step for step in even(total - forced + 1, count - forced + 1)))
    search = ScheduleSearch(
        cost, total, calibration.limits, calibration.seed, calibration.on_tried, fixed=forced, relative=True
    )
    schedule = search.best([start])
    return schedule, rows_of(schedule, total)
