"""MeanCache: average velocities over a gap, and the path on which they err least (2026, arXiv 2601.19961).

After an evaluated step at t, with the second evaluated step before it at r, the average velocity up to s is taken to be

    u = v(z_t) + (s − t)·[z_t − z_r − (t − r)·v(z_r)]/(t − r)²,

and D[b, j] = min_i D[b−1, i] + C(i, j)^γ with γ = 4 chooses the evaluated steps, where C(i, j) is the error of u on
untouched runs, with r two steps before i there. Time is what the scheduler multiplies outputs with. The displacement
z_t − z_r is the sum of what was given to the scheduler, so that the forecast is a weighted sum of outputs as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..search import Schedule
from .calibration import Calibration, Found

GAMMA = 4
BACK = 2
"""How many evaluations before t the time r lies. From 1 back the samples tell nothing that the output did not."""


def found(calibration: Calibration) -> Found:
    total = calibration.steps
    times = np.concatenate([[0.0], np.cumsum(calibration.references[0].factors)])  # (T + 1,)
    schedule = _path(_costs(calibration, times), calibration.count, total)
    return schedule, _rows(schedule, times, total)


def _costs(calibration: Calibration, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """C(i, j): relative error of the average velocity from step i to j, (T, T + 1)."""
    latents, outputs, total = calibration.latents, calibration.outputs, calibration.steps
    costs = np.full((total, total + 1), np.inf)
    for i in range(total):
        bend = 0.0 * outputs[i]
        if i >= BACK:
            span = times[i] - times[i - BACK]
            bend = (latents[i] - latents[i - BACK] - span * outputs[i - BACK]) / span**2
        for j in range(i + 1, total + 1):
            reach = times[j] - times[i]
            average = (latents[j] - latents[i]) / reach
            costs[i, j] = float((outputs[i] + reach * bend - average).norm() / average.norm())
    return costs


def _path(costs: NDArray[np.float64], count: int, total: int) -> Schedule:
    """The steps whose ``count`` edges from step 0 to the end T have the least sum of C^γ."""
    best: dict[int, tuple[float, Schedule]] = {0: (0.0, (0,))}  # last evaluated step → cost so far, and the steps
    for left in range(count - 1, 0, -1):
        best = {
            j: min((cost + costs[i, j] ** GAMMA, (*steps, j)) for i, (cost, steps) in best.items() if i < j)
            for j in range(count - left, total - left + 1)
        }
    return min((cost + costs[i, total] ** GAMMA, steps) for i, (cost, steps) in best.items())[1]


def _rows(schedule: Schedule, times: NDArray[np.float64], total: int) -> list[list[float]]:
    ends = dict(zip(schedule, (*schedule[1:], total), strict=True))
    rows: list[list[float]] = []
    for number, at in enumerate(schedule):
        row = np.eye(number + 1)[number]
        if number >= BACK:
            back = schedule[number - BACK]
            span = times[at] - times[back]
            moved = np.zeros(number + 1)  # z_t − z_r as a sum of outputs
            for step in range(back, at):
                moved[: len(rows[step])] += (times[step + 1] - times[step]) * np.array(rows[step])
            moved[number - BACK] -= span
            row = row + (times[ends[at]] - times[at]) * moved / span**2
        rows += [[float(weight) for weight in row]] * (ends[at] - at)
    return rows
