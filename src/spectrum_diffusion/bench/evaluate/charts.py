"""The plots of the report: which numbers they show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import plots
from .results import Results
from .tables import flops, known_metrics, metric_title

COSTS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "evaluations (NFE)": lambda row: row["nfe"]["mean"] if row["nfe"] else None,
    "seconds a call": lambda row: row["seconds"],
    "operations, in evaluations": flops,
}


def is_crowded(results: Results) -> bool:
    """Whether a plot has no room for the names of all rows."""
    rows, names = results.rows, known_metrics(results)
    return any(sum(name in row["metrics"] for row in rows) > plots.ROOM for name in names)


def plots_of(results: Results, name: str) -> list[str]:
    """A metric against evaluations, time and operations, and its difference to the baseline."""
    metric = results.metrics[name]
    svgs = []
    for cost, value in COSTS.items():
        if points := _points(results, name, value):
            title, better = f"{metric['title']} against {cost}", metric["higher_is_better"]
            svgs.append(plots.scatter(points, title, cost, metric_title(metric), higher_is_better=better))
    return [*svgs, _forest(results, name)]


def _points(results: Results, name: str, cost: Callable[[dict[str, Any]], float | None]) -> list[plots.Point]:
    points = []
    for number, row in enumerate(results.rows):
        metric, x = row["metrics"].get(name), cost(row)
        if metric and metric["mean"] is not None and x is not None:
            points.append(plots.Point(row["label"], x, metric["mean"], metric["low"], metric["high"], number))
    return points


def _forest(results: Results, name: str) -> str:
    bars = []
    for number, row in enumerate(results.rows):
        gap = row["metrics"].get(name, {}).get("against_baseline")
        if gap and gap["low"] is not None:
            bars.append(plots.Bar(row["label"], gap["mean"], gap["low"], gap["high"], number, gap["verdict"]))
    title = f"{results.metrics[name]['title']}, difference to {results.baseline}"
    return plots.forest(bars, title, title) if bars else ""


def path_curves(results: Results) -> list[plots.Curve]:
    """The error of the latents after each step, for the rows that have it."""
    return [
        plots.Curve(row["label"], list(enumerate(row["path_rmse"], 1)), number)
        for number, row in enumerate(results.rows)
        if row["path_rmse"]
    ]


def path(curves: list[plots.Curve]) -> str:
    return plots.lines(curves, "RMSE of the latents by step", "step", "RMSE of the latents") if curves else ""


def decisions(results: Results) -> list[tuple[str, str, str]]:
    """What each row did at each step: name, explanation and bars."""
    strips = []
    for number, row in enumerate(results.rows):
        if units := [unit for unit in results.units if unit["row"] == row["label"]]:
            strips += _strips(row["label"], units, number)
    return strips


def _strips(label: str, units: list[dict[str, Any]], number: int) -> list[tuple[str, str, str]]:
    first = units[0]["decisions"] or {"": "E" * units[0]["steps"]}
    strips = []
    for branch, marks in first.items():
        name = f"{label}, {branch}" if len(first) > 1 else label
        count = f"{sum(mark in 'E!' for mark in marks)} of {len(marks)}"
        strips.append((name, count, plots.strip(marks, f"{name}: {count} evaluated", number)))
    if any(unit["decisions"] != units[0]["decisions"] for unit in units):
        steps = max(unit["steps"] for unit in units)
        shares = [sum(step in unit["evaluated"] for unit in units) / len(units) for step in range(steps)]
        title = f"{label}: share of {len(units)} calls that evaluated each step"
        strips.append(("", f"share of {len(units)}", plots.share(shares, title, number)))
    return strips
