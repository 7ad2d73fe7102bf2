"""How many steps to evaluate, decided while a loop runs.

At an evaluated step the forecast that would have been used can be compared with the output that has arrived, without
another evaluation: the difference of predictor and corrector estimates the error, as in Milne's device. A solver of
differential equations would set the next gap from the latest difference alone. Here that is too nervous, since each
gap is also wrong about the next one; so *where* evaluations lie stays the business of a fixed family of schedules, one
for each number of evaluations, and the differences choose the member of the family, again at each evaluated step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .history import Feature

Family = Callable[[int, int], Sequence[int]]
"""From the steps of a run and its number of evaluations to its evaluated steps, the last step among them."""

ORDER = 2.0
"""The error of a forecast grows with the gap to this power, so that it falls with the evaluations to this power."""
USUAL_ERROR, USUAL_COUNT = 0.25, 14
"""The error to expect of that many evaluations, before anything is known of the run."""
TRUST = 12
"""How many measured errors the expectation counts as."""
SMALLEST, LARGEST = 1e-6, 1e6
"""Errors below and above count as these."""
ROUNDING = 1e-6
"""Room for the rounding of places on a schedule."""
SHORT = "fewer evaluations than the tolerance asks for: max_nfe leaves no more"


class Controller:
    """Chooses the evaluated steps of one sampling loop, for every branch and every sample of the batch together.

    Every error e that was seen with the schedule of K evaluations estimates the constant of ``e = C/K²``. Its geometric
    mean, with an expectation mixed in, gives the number of evaluations ``√(C/tolerance)`` whose schedule is followed to
    the next evaluated step.

    Args:
        tolerance: wanted relative error of a forecast when the next output arrives, > 0.
        least, most: numbers of evaluations from and up to which schedules are used; ``most`` is never exceeded.
    """

    def __init__(self, tolerance: float, least: int, most: int) -> None:
        self.tolerance, self.least, self.most = tolerance, least, most
        self.next, self.spent = 0, 0  # the next evaluated step, and how many there were
        self._constants = [math.log(USUAL_ERROR * USUAL_COUNT**ORDER)] * TRUST  # logarithms of C
        self._followed = 0  # evaluations of the schedule whose gap leads to the evaluated step under way
        self._errors: list[torch.Tensor] = []  # of its branches

    def evaluates(self, step: int, total: int) -> bool:
        """Whether a step is evaluated; the same for all calls of a step."""
        return step >= self.next

    def needs_feature(self, step: int, total: int) -> bool:
        """Whether a later step may be skipped, so that the feature of this one must be kept."""
        return step < total - 1

    def compare(self, forecast: Iterable[torch.Tensor], feature: Feature) -> None:
        """Take note of what was forecast for an evaluated step of one branch, and of what came."""
        self._errors.append(largest_error(forecast, feature))

    def end(self, step: int, total: int, family: Family, note: Callable[[str], None]) -> None:
        """Choose the next evaluated step, after the last call of an evaluated one; reads one number from the device.

        Args:
            step: the evaluated step.
            total: number of steps T of the run.
            family: the schedules to choose from.
            note: is told what the summary should say.
        """
        self.spent += 1
        self._learn()
        if step >= total - 1:
            return
        wanted = min(max(self._wanted(), self.least), total)
        self._followed, self.next = self._affordable(step, total, wanted, family)
        if self._followed < wanted:
            note(SHORT)

    def _learn(self) -> None:
        errors, self._errors = self._errors, []
        if errors and self._followed:
            error = float(reduce(lambda largest, next_error: largest.maximum(next_error.to(largest.device)), errors))
            error = max(SMALLEST, min(LARGEST, error))  # in this order a NaN counts as the largest
            self._constants.append(math.log(error * self._followed**ORDER))

    def _wanted(self) -> int:
        constant = math.exp(sum(self._constants) / len(self._constants))
        return round((constant / self.tolerance) ** (1 / ORDER))

    def _affordable(self, step: int, total: int, wanted: int, family: Family) -> tuple[int, int]:
        """The evaluations of the schedule to follow, at most ``wanted``, and the next step on it.

        As long as nothing but this controller spends evaluations, the schedule followed so far remains affordable. If
        fallbacks have spent them all, no later step is evaluated.
        """
        for count in range(min(wanted, self.most), self.least - 1, -1):
            nodes = family(total, count)
            place = next_place(step, nodes)
            for following in (max(round(place), step + 1), math.ceil(place - ROUNDING)):
                if evaluations_after(following, nodes) < self.most - self.spent:
                    return count, following
        return 0, total


def next_place(step: int, nodes: Sequence[int]) -> float:
    """The next place on a schedule from a step that need not be one of its nodes, at most the distance of nodes away.

    A step between two nodes has passed a share of their distance. Equal parts of what is left lead to the last node.
    """
    passed = _passed(step, nodes)
    before, share = divmod(passed + (len(nodes) - 1 - passed) / evaluations_after(step, nodes), 1)
    lower, upper = nodes[int(before)], nodes[min(int(before) + 1, len(nodes) - 1)]
    return lower + share * (upper - lower)


def evaluations_after(step: int, nodes: Sequence[int]) -> int:
    """How many evaluations lead from a step to the last node."""
    return math.ceil(len(nodes) - 1 - _passed(step, nodes) - ROUNDING)


def _passed(step: int, nodes: Sequence[int]) -> float:
    """How many distances between nodes lie before a step."""
    after = bisect_right(nodes, step)
    if after == len(nodes):
        return float(after - 1)
    return after - 1 + (step - nodes[after - 1]) / (nodes[after] - nodes[after - 1])


def largest_error(forecast: Iterable[torch.Tensor], feature: Feature) -> torch.Tensor:
    """The largest ``‖ĥ − h‖ / ‖h‖`` of all samples and tensors of a feature, a scalar on its device."""
    errors = []
    for guess, truth in zip(forecast, feature, strict=True):
        if truth.is_floating_point():
            exact = truth.float().reshape(truth.shape[0] if truth.dim() else 1, -1)  # (B, N)
            off = (guess.float().reshape(exact.shape) - exact).norm(dim=1)  # (B,)
            errors.append((off / exact.norm(dim=1).clamp_min(1e-20)).max())
    return reduce(lambda largest, next_error: largest.maximum(next_error), errors)
