"""LeMiCa: the path whose worst gaps do the least harm to the result (2025, arXiv 2511.00090).

The edge i → j costs the L1 error of the final latents if only the steps between i and j are skipped, with reuse of i.
Of all paths with the wanted number of evaluations, the one is chosen whose errors, sorted from the largest down, are
lexicographically least. Every edge is a run of its own: gaps are limited, and few pairs are used.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from ..reference import first
from ..search import Schedule
from .calibration import Calibration, Found, rows_of

PAIRS = 4
"""Pairs on which edges are measured."""
WIDEST = 2.5
"""Longest gap, as a multiple of the mean one."""

Edges = dict[tuple[int, int], float]


def found(calibration: Calibration) -> Found:
    few = replace(calibration, references=first(calibration.references, PAIRS))
    schedule = least_worst(_edges(few), calibration.count, calibration.steps)
    return schedule, rows_of(schedule, calibration.steps)


def _edges(calibration: Calibration) -> Edges:
    """The error of each gap; the end of the run is step T."""
    total = calibration.steps
    widest = math.ceil(WIDEST * total / calibration.count)
    wanted = [(i, j) for i in range(total) for j in range(i + 2, min(i + widest, total) + 1)]
    errors: Edges = {(i, i + 1): 0.0 for i in range(total)}
    begin = time.monotonic()
    for number, (i, j) in enumerate(wanted, 1):
        kept = (*range(i + 1), *range(j, total))
        errors[i, j] = calibration.distance(kept, rows_of(kept, total), untouched=i + 1)
        calibration.on_tried(number, (time.monotonic() - begin) * (len(wanted) - number) / number)
    return errors


def least_worst(edges: Edges, count: int, total: int) -> Schedule:
    """The steps of the path from 0 to the end over ``count`` edges whose falling errors are lexicographically least.

    The order of two such lists of equal length stays if both get the same number, so that the best way to each step
    suffices.
    """
    best: dict[int, tuple[list[float], Schedule]] = {0: ([], (0,))}
    for _ in range(count):
        ways: dict[int, tuple[list[float], Schedule]] = {}
        for (i, j), error in edges.items():
            if i in best:
                errors, steps = best[i]
                way = (sorted([*errors, error], reverse=True), (*steps, j))
                ways[j] = min(way, ways.get(j, way))
        best = ways
    return best[total][1][:-1]
