"""What one table gave on one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...core.words import number
from ..evaluate import Results
from ..evaluate.tables import flops
from .paper import MODELS, TABLES, Model, Table


@dataclass(frozen=True)
class TableResult:
    """One table on one model.

    Attributes:
        name: a key of ``TABLES``.
        key: a key of ``MODELS``.
        ran: name of the pipeline that was loaded for the model.
        results: the evaluation, which also has the rows of other tables; None where the table did not run.
        problem: why it did not run.
        problems: label → why a setting has no row.
    """

    name: str
    key: str
    ran: str
    results: Results | None
    problem: str = ""
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        return TABLES[self.name]

    @property
    def model(self) -> Model:
        return MODELS[self.key]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the results by label."""
        return {row["label"]: row for row in self.results.rows} if self.results else {}

    def units(self, label: str) -> list[dict[str, Any]]:
        """The generations of a row."""
        return [unit for unit in self.results.units if unit["row"] == label] if self.results else []

    def problem_of(self, label: str) -> str:
        """Why a row is missing or incomplete; empty for a complete row."""
        row = self.rows.get(label)
        if row is None:
            return self.problems.get(label, "not among the results")
        if not row["error"]:
            return ""
        return f"after {row['units']} of {row['of']}: {row['error']}" if row["units"] else str(row["error"])

    def psnr(self, label: str) -> float | None:
        """Mean PSNR in dB of a complete row."""
        metric = None if self.problem_of(label) else self.rows[label]["metrics"].get("psnr")
        return metric["mean"] if metric else None

    def path(self, label: str) -> list[float] | None:
        """Mean latent RMSE after each step, (T,), of a complete row."""
        return None if self.problem_of(label) else self.rows[label]["path_rmse"]

    def cost(self, label: str) -> str:
        """Floating-point operations of a row's first case, in whole evaluations."""
        return number(flops(self.rows[label]) if label in self.rows else None, ".1f")
