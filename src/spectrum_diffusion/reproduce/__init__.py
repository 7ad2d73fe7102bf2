"""The paper's tables and sweeps, run again: on its models, or on the small trained ones of the same architectures.

Settings and the paper's numbers are data (:mod:`.paper`). The work is that of :mod:`spectrum_diffusion.evaluate`: a run
that was cut off goes on, and tables that share rows share their pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluate import Request, Results, Row, evaluate
from ..evaluate.work import OnUnit
from ..prompts import Prompt
from .paper import MODELS, RMSE, TABLES, Model, Setting, Table, paper_value


@dataclass(frozen=True)
class Reproduced:
    """One table on one model.

    Attributes:
        name: a key of ``TABLES``.
        model: a model of the paper.
        ran: what was loaded in its place, for the reader.
        results: of the evaluation; None where the model couldn't be had, with the ``problem``.
    """

    name: str
    model: Model
    ran: str
    results: Results | None
    problem: str = ""

    @property
    def table(self) -> Table:
        return TABLES[self.name]


def reproduce(
    name: str,
    key: str,
    pipe: Any,
    ran: str,
    prompts: tuple[Prompt, ...],
    folder: Path,
    *,
    metrics: tuple[str, ...],
    call: dict[str, Any] | None = None,
    on_unit: OnUnit | None = None,
) -> Reproduced:
    """One table on one model.

    Args:
        name: a key of ``TABLES``.
        key: a key of ``MODELS`` that the table has.
        pipe: the pipeline, on its device.
        ran: its name.
        prompts: with seed 0 each.
        folder: of the model; tables may share it, and with it their pictures.
        metrics: names of ``METRICS``.
        call: options of the pipeline's call.

    Raises:
        ConflictError, StoreError, SpectrumError: as :func:`evaluate`.
    """
    table, model = TABLES[name], MODELS[key]
    rows = tuple(Row(setting.method, dict(setting.options), setting.label) for setting in table.settings)
    request = Request(
        model=ran, rows=rows, prompts=prompts, call=call or {}, metrics=metrics, path=True, command=f"reproduce {name}"
    )
    return Reproduced(name, model, ran, evaluate(pipe, request, folder, on_unit))


def markdown(found: Reproduced) -> str:
    """The table with ours beside the paper's numbers; – where the paper's text gives none."""
    title = f"### {found.name}: {found.table.title}, {found.model.name}"
    if found.results is None:
        return f"{title}\n\nNot run: {found.problem}."
    lines = path_table(found, found.results) if found.table.path else quality_table(found, found.results)
    pictures = len({(unit["prompt"], unit["seed"]) for unit in found.results.units})
    what = "videos" if found.model.video else "pictures"
    return "\n".join(
        [title, "", f"Ours on {found.ran}, {pictures} {what} a row; the paper's on {found.model.name}.", "", *lines]
    )


def quality_table(found: Reproduced, results: Results) -> list[str]:
    """NFE, cost and metrics of every setting."""
    columns = [name for name in results.metrics if name != "lpips" or "lpips" in found.table.metrics]
    reported = [name for name in columns if name in found.table.metrics]
    head = ["setting", "NFE (paper)", "cost", "memory", *(results.metrics[name]["title"] for name in columns)]
    head += [f"paper's {results.metrics[name]['title']}" for name in reported]
    rows = {row["label"]: row for row in results.rows}
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for setting in found.table.settings:
        lines.append(
            f"| {setting.label} | " + " | ".join(_cells(found, setting, rows[setting.label], columns, reported)) + " |"
        )
    return lines


def _cells(
    found: Reproduced, setting: Setting, row: dict[str, Any], columns: list[str], reported: list[str]
) -> list[str]:
    if row["error"]:
        return [f"not run: {row['error']}", *["–"] * (2 + len(columns) + len(reported))]
    nfe = f"{row['nfe']['mean']:.3g}" if row["nfe"] else "–"
    cost = f"{row['flops']['evaluations']:.1f}" if row["flops"] else "–"
    memory = f"{row['history_bytes'] / 2**20:.2f} MiB" if row["history_bytes"] is not None else "–"
    ours = [_interval(row["metrics"].get(name)) for name in columns]
    theirs = [_number(paper_value(found.name, found.model, setting, name)) for name in reported]
    return [f"{nfe} ({setting.nfe or '–'})", cost, memory, *ours, *theirs]


def path_table(found: Reproduced, results: Results) -> list[str]:
    """Latent RMSE to the untouched run after some steps."""
    steps = found.table.path
    rows = {row["label"]: row for row in results.rows}
    lines = [
        "| setting | " + " | ".join(f"step {step}" for step in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for setting in found.table.settings:
        path = rows[setting.label].get("path_rmse")
        ours = [f"{path[step - 1]:.4f}" if path and len(path) >= step else "–" for step in steps]
        lines.append(f"| {setting.label} | " + " | ".join(ours) + " |")
        theirs = RMSE.get((found.name, setting.row["method"]))
        if theirs:
            lines.append(f"| {setting.label}, the paper's | " + " | ".join(f"{value:.4f}" for value in theirs) + " |")
    return lines


def _interval(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("mean") is None:
        return "–"
    low, high = metric.get("low"), metric.get("high")
    text = f"{metric['mean']:.4g}"
    return f"{text} ({low:.4g} … {high:.4g})" if low is not None and high is not None else text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


__all__ = ["MODELS", "TABLES", "Reproduced", "markdown", "reproduce"]
