"""The paper's tables and figures, run again: on its models, or on the small trained ones of the same architectures.

Settings and the paper's numbers are data (:mod:`.paper`). :mod:`spectrum_diffusion.bench.evaluate` does the work: a run
that was cut off goes on, and tables that share rows share their pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..evaluate import Request, Results, evaluate
from ..evaluate.tables import flops, number
from ..evaluate.work import OnUnit
from ..prompts import Prompt
from .page import page
from .paper import MODELS, TABLES, Model, Table
from .rows import make_rows

BASELINES = ("14 steps", "15 steps")
"""What a report holds all rows against, the first of them that there is: they cost about as much as most rows."""


@dataclass(frozen=True)
class Reproduced:
    """One table on one model.

    Attributes:
        name: a key of ``TABLES``.
        key: a key of ``MODELS``.
        ran: what was loaded in the model's place, for the reader.
        results: of the evaluation, which has rows of other tables too; None where the model couldn't be had, with the
            ``problem``.
        problems: label → why a setting isn't among the results.
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
        """What was drawn for a row."""
        return [unit for unit in self.results.units if unit["row"] == label] if self.results else []

    def problem_of(self, label: str) -> str:
        """Why a row is not there, or not whole; empty where it is."""
        row = self.rows.get(label)
        if row is None:
            return self.problems.get(label, "not among the results")
        if not row["error"]:
            return ""
        return f"after {row['units']} of {row['of']}: {row['error']}" if row["units"] else str(row["error"])

    def psnr(self, label: str) -> float | None:
        """Mean PSNR in dB of a row that is whole."""
        found = None if self.problem_of(label) else self.rows[label]["metrics"].get("psnr")
        return found["mean"] if found else None

    def path(self, label: str) -> list[float] | None:
        """Mean latent RMSE after each step, (T,), of a row that is whole."""
        return None if self.problem_of(label) else self.rows[label]["path_rmse"]

    def cost(self, label: str) -> str:
        """Floating-point operations of a row's first case in whole evaluations."""
        return number(flops(self.rows[label]) if label in self.rows else None, ".1f")


def reproduce(
    names: Sequence[str],
    key: str,
    pipe: Any,
    ran: str,
    prompts: tuple[Prompt, ...],
    folder: Path,
    *,
    metrics: tuple[str, ...],
    clip: str | None = None,
    seed: int = 0,
    tuned_on: tuple[str, ...] = (),
    call: dict[str, Any] | None = None,
    on_unit: OnUnit | None = None,
    on_tuning: Callable[[str], None] = lambda _: None,
) -> list[Reproduced]:
    """Tables on one model, in one evaluation: what they share is drawn once, and all is timed by turns.

    Args:
        names: keys of ``TABLES``.
        key: a key of ``MODELS``.
        pipe: the pipeline, on its device.
        ran: its name.
        prompts: each of them is drawn once.
        folder: of the model.
        metrics: names, as in :class:`Request`.
        clip: as in :class:`Request`.
        seed: of every picture's noise.
        tuned_on: prompts by which thresholds are found for a number of evaluations; ``prompts`` if there are none.
        call: options of the pipeline's call.
        on_unit: as :func:`evaluate`.
        on_tuning: called after each picture that is drawn to find a threshold.

    Raises:
        ConflictError, StoreError, SpectrumError: as :func:`evaluate`.
    """
    call, tuned_on = call or {}, tuned_on or tuple(prompt.text for prompt in prompts)
    settings = {setting.label: setting for name in names for setting in TABLES[name].settings}
    rows, problems = make_rows(pipe, tuple(settings.values()), tuned_on, call, folder / "plans", on_tuning)
    request = Request(
        model=ran,
        rows=rows,
        prompts=prompts,
        seeds=(seed,),
        call=call,
        metrics=metrics,
        clip=clip,
        baseline=next((label for label in BASELINES if label in {row.label for row in rows}), None),
        path=True,
        command=f"reproduce {' '.join(names)}",
    )
    results = evaluate(pipe, request, folder, on_unit)
    return [Reproduced(name, key, ran, results, problems=problems) for name in names]


__all__ = ["MODELS", "TABLES", "Reproduced", "page", "reproduce"]
