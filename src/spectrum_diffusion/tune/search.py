"""Search of a schedule in closed loop: annealing, then hill climbing from the best (as BudCache, arXiv 2606.13496)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..core.schedule import chebyshev_lobatto, distinct

Schedule = tuple[int, ...]

FARTHEST = 3
"""How far a move shifts an evaluated step."""
DOUBLE_MOVES = 0.25
"""Share of the moves that shift two."""
ANNEALED = 0.6
"""Share of the search that accepts worse schedules, ever more rarely."""
HOT, COLD = 0.05, 0.001
"""Temperatures of the annealing, in powers of ten of the error."""
ATTEMPTS = 1000
"""Moves tried for one that is new, before the search ends."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a search lasts: whichever is reached first.

    Attributes:
        runs: schedules tried. With this alone the result depends on nothing but the seed.
        seconds: time.
    """

    runs: int = 100
    seconds: float = math.inf


def cost_of(errors: NDArray[np.float64]) -> float:
    """What a search minimises: log₁₀ of the errors, their mean and their worst tenth."""
    logs = np.log10(errors)
    return float((logs.mean() + 0.5 * worst_tenth(logs)) / 1.5)


def worst_tenth(values: NDArray[np.float64]) -> float:
    """Mean of the highest tenth of the values, at least one."""
    return float(np.sort(values)[-math.ceil(len(values) / 10) :].mean())


@dataclass
class ScheduleSearch:
    """Finds the schedule of the lowest cost.

    Args:
        cost: of a schedule; the expensive part.
        total: number of steps T.
        limits: how long.
        seed: of the moves.
        on_tried: called after each schedule with the number of those tried, and the seconds left.
        fixed: how many of the first steps stay.
        relative: anneal on the ratio of costs, where they are not logarithms.
    """

    cost: Callable[[Schedule], float]
    total: int
    limits: Limits
    seed: int = 0
    on_tried: Callable[[int, float], None] = lambda tried, left: None
    fixed: int = 1
    relative: bool = False
    tried: dict[Schedule, float] = field(default_factory=dict)

    def best(self, starts: Iterable[Schedule]) -> Schedule:
        """The best schedule found from the best of some."""
        self._begin = time.monotonic()
        random_moves = random.Random(self.seed)
        for start in starts:
            self._costs(start)
        current = self._best
        while (share := self._spent()) < 1:
            if share >= ANNEALED:
                current = self._best
            moved = self._moved(current, random_moves)
            if moved is None:
                break
            rise = self._costs(moved) - self.tried[current]
            if self.relative:
                rise /= self.tried[current]
            temperature = HOT * (COLD / HOT) ** min(1.0, share / ANNEALED)
            if rise < 0 or (share < ANNEALED and random_moves.random() < math.exp(-rise / temperature)):
                current = moved
        return self._best

    @property
    def _best(self) -> Schedule:
        return min(self.tried, key=lambda schedule: (self.tried[schedule], schedule))

    def _costs(self, schedule: Schedule) -> float:
        if schedule not in self.tried:
            self.tried[schedule] = self.cost(schedule)
            self.on_tried(len(self.tried), self._left())
        return self.tried[schedule]

    def _spent(self) -> float:
        """Share of the search that is over."""
        return max(len(self.tried) / self.limits.runs, (time.monotonic() - self._begin) / self.limits.seconds)

    def _left(self) -> float:
        spent, share = time.monotonic() - self._begin, self._spent()
        return spent * (1 - share) / share if share < 1 else 0.0

    def _moved(self, schedule: Schedule, moves: random.Random) -> Schedule | None:
        """A schedule not tried yet, with one or two evaluated steps shifted; the fixed ones stay."""
        if len(schedule) <= self.fixed:
            return None
        for _ in range(ATTEMPTS):
            steps = list(schedule)
            for _ in range(2 if moves.random() < DOUBLE_MOVES else 1):
                steps[moves.randrange(self.fixed, len(steps))] += moves.choice([-1, 1]) * moves.randint(1, FARTHEST)
            moved = tuple(sorted(set(steps)))
            if (
                len(moved) == len(schedule)
                and moved[: self.fixed] == schedule[: self.fixed]
                and moved[-1] < self.total
                and moved not in self.tried
            ):
                return moved
        return None


def symmetric(total: int, count: int) -> Schedule:
    """Nodes half-way between even ones and those of Chebyshev: closer together at both ends."""
    return tuple(distinct([(total - 1) * place for place in chebyshev_lobatto(count, even=0.5)], total))
