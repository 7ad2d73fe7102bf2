"""DPCache: the schedule whose forecasts err least on untouched runs, by dynamic programming (2026, arXiv 2602.22654).

C[i, j, k] is the sum of ‖h − ĥ‖₁ over the skipped steps between j and k, where ĥ is on the line through i and j. The
first three steps are forced. The cost of a schedule is the sum over its triples of neighbours.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from ...core.forecast import taylor_weights
from .calibration import Calibration, Found, rows_of

FORCED = 3


def found(calibration: Calibration) -> Found:
    total, count, outputs = calibration.steps, calibration.count, calibration.outputs
    forced = min(FORCED, count)

    @cache
    def missed(i: int, j: int) -> list[float]:
        """Sums of errors over the steps j + 1 … k − 1, for each k."""
        sums = [0.0]
        for step in range(j + 1, total):
            line = outputs[j] + (outputs[j] - outputs[i]) * ((step - j) / (j - i)) if i < j else outputs[j]
            sums.append(sums[-1] + float(torch.sum(torch.abs(outputs[step] - line))))
        return sums

    @cache
    def least(i: int, j: int, left: int) -> tuple[float, tuple[int, ...]]:
        """The least cost after evaluating i and j with so many evaluations left, and the steps that have it."""
        sums = missed(i, j)
        best: tuple[float, tuple[int, ...]] = (sums[total - j - 1] if not left else math.inf, ())
        for k in range(j + 1, total - left + 1) if left else ():
            rest, steps = least(j, k, left - 1)
            best = min(best, (sums[k - j - 1] + rest, (k, *steps)))
        return best

    start = tuple(range(forced))
    schedule = (*start, *least(max(0, forced - 2), forced - 1, count - forced)[1])
    return schedule, rows_of(schedule, total, lambda kept, step: taylor_weights(kept, step, 1))
