"""What a job did: throughput, cost, failures by reason."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ...core.words import counted_name
from .generator import Outcome


class Report:
    """Counts of the outcomes of a job, or of a process's share of it.

    Args:
        wanted: files that there should be at the end.
        existed: files that there were at the beginning.
        price: of an hour of one worker, in any currency; None if unknown.
    """

    def __init__(self, wanted: int, existed: int, price: float | None = None) -> None:
        self.wanted, self.existed, self.price = wanted, existed, price
        self.workers = 1
        self.generated, self.busy, self.nfe, self.steps = 0, 0.0, 0, 0
        self.failures: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self._outcomes: set[str] = set()
        self._begin = time.monotonic()
        self.seconds = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome. One that is told again, by an execution that was repeated, counts once."""
        self.seconds = time.monotonic() - self._begin
        if outcome.file in self._outcomes:
            return
        self._outcomes.add(outcome.file)
        if outcome.reason:
            self.failures[outcome.reason] += 1
            self.details.setdefault(outcome.reason, outcome.detail)
        elif outcome.existed:
            self.existed += 1
        else:
            self.generated += 1
            self.busy += outcome.seconds
            self.nfe += outcome.nfe
            self.steps += outcome.steps

    @property
    def missing(self) -> int:
        """Files that there should be and are not."""
        return self.wanted - self.existed - self.generated

    @property
    def images_per_hour(self) -> float:
        """Files of this run per hour, loading the pipeline included."""
        return 3600 * self.generated / self.seconds if self.seconds else 0.0

    @property
    def cost(self) -> float | None:
        """Price of one file: that of the workers' hours over the files of this run."""
        if self.price is None or not self.generated:
            return None
        return self.price * self.workers * self.seconds / 3600 / self.generated

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "wanted": self.wanted,
            "existed": self.existed,
            "generated": self.generated,
            "missing": self.missing,
            "failures": dict(self.failures),
            "details": self.details,
            "workers": self.workers,
            "seconds": self.seconds,
            "images_per_hour": self.images_per_hour,
            "seconds_per_image": self.busy / self.generated if self.generated else None,
            "nfe_per_image": self.nfe / self.generated if self.generated else None,
            "cost_per_image": self.cost,
        }

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [f"{self.generated} generated, {self.existed} existed, {self.missing} missing of {self.wanted}"]
        if self.generated:
            each = f"{self.busy / self.generated:.2f} s and {self.nfe / self.generated:.1f} evaluations each"
            lines.append(f"{self.images_per_hour:,.0f} an hour with {counted_name(self.workers, 'worker')}, {each}")
        if self.cost is not None:
            lines.append(f"cost per image: {self.cost:.6f}")
        lines += [f"{count} failed: {reason}: {self.details[reason]}" for reason, count in self.failures.most_common()]
        return lines
