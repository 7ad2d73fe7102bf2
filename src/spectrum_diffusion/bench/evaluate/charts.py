"""The drawings of the page: which numbers go into which."""

from __future__ import annotations

from html import escape
from typing import Any

from . import plots
from .results import Results
from .tables import flops, known_metrics


def section(name: str, *content: str) -> str:
    """A part of the page under its heading; the content is HTML."""
    return f"<section><h2>{escape(name)}</h2>\n{''.join(content)}</section>"


def note(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="note">{escape(text)}</p>\n'


def quality(results: Results) -> str:
    """Each metric against evaluations, time and operations, and its difference to the baseline."""
    names = known_metrics(results)
    if not names:
        return ""
    options = "".join(
        f'<option value="{escape(name)}">{escape(results.metrics[name]["title"])}</option>' for name in names
    )
    control = f'<div class="controls" hidden><label>Metric <select id="metric">{options}</select></label></div>'
    groups = [_group(results, name) for name in names]
    text = "Whiskers are 95 % intervals over the prompts. Up and to the left is better, or down for metrics marked ↓."
    if any(sum(name in row["metrics"] for row in results.rows) > plots.ROOM for name in names):
        text += " Named are those that no other betters at their cost or less; point at one of the others for its name."
    return section("Quality against cost", control, note(text), *groups)


def _group(results: Results, name: str) -> str:
    shown = results.metrics[name]
    arrow = "↑" if shown["higher_is_better"] else "↓"
    y_name = " ".join(part for part in (shown["title"], shown["unit"], arrow) if part)
    costs = {
        "evaluations (NFE)": lambda row: row["nfe"]["mean"] if row["nfe"] else None,
        "seconds a call": lambda row: row["seconds"],
        "operations, in evaluations": flops,
    }
    drawn, higher = [], shown["higher_is_better"]
    for cost, value in costs.items():
        points = _points(results, name, value)
        if points:
            title = f"{shown['title']} against {cost}"
            drawn.append(plots.scatter(points, title, cost, y_name, higher_is_better=higher))
    drawn.append(_forest(results, name))
    return f'<div class="grid-of" data-metric="{escape(name)}">{"".join(drawn)}</div>'


def _points(results: Results, name: str, value: Any) -> list[plots.Point]:
    found = []
    for number, row in enumerate(results.rows):
        metric, x = row["metrics"].get(name), value(row)
        if metric and metric["mean"] is not None and x is not None:
            found.append(plots.Point(row["label"], x, metric["mean"], metric["low"], metric["high"], number))
    return found


def _forest(results: Results, name: str) -> str:
    bars = []
    for number, row in enumerate(results.rows):
        gap = row["metrics"].get(name, {}).get("against_baseline")
        if gap and gap["low"] is not None:
            bars.append(plots.Bar(row["label"], gap["mean"], gap["low"], gap["high"], number, gap["verdict"]))
    if not bars:
        return ""
    title = f"{results.metrics[name]['title']}, difference to {results.baseline}"
    return plots.forest(bars, title, title)


def path(results: Results) -> str:
    """The error of the latents by step, where it was asked for."""
    curves = [
        plots.Curve(row["label"], list(enumerate(row["path_rmse"], 1)), number)
        for number, row in enumerate(results.rows)
        if row["path_rmse"]
    ]
    if not curves:
        return ""
    drawn = plots.lines(curves, "RMSE of the latents by step", "step", "RMSE of the latents")
    text = "Against the untouched run, after each step; means."
    if len(curves) > plots.ROOM:
        text += f" Named are the {plots.ROOM} that end nearest."
    return section("How far the latents stray", drawn, note(text))


def decisions(results: Results) -> str:
    """What each method did at each step."""
    strips = "".join(_strips(results, row, number) for number, row in enumerate(results.rows) if row["units"])
    text = note(
        "A step to a bar, from left to right: tall bars ran the whole denoiser, low ones were forecast, half ones ran "
        "a part of it; red is a fallback. Where the decisions depend on the picture, the first one's are drawn, and "
        "below them the share of all that were evaluated at each step."
    )
    return section("What was done at each step", text, f'<div class="strips">{strips}</div>')


def _strips(results: Results, row: dict[str, Any], number: int) -> str:
    units = [unit for unit in results.units if unit["row"] == row["label"]]
    first = units[0]["decisions"] or {"": "E" * units[0]["steps"]}
    drawn = [_strip(row["label"], branch, marks, number, len(first) > 1) for branch, marks in first.items()]
    if any(unit["decisions"] != units[0]["decisions"] for unit in units):
        shares = _shares(units)
        title = f"{row['label']}: share of {len(units)} calls evaluated at each step"
        drawn.append(f"<div>share of {len(units)}</div>{plots.share(shares, title, number)}")
    return "".join(drawn)


def _strip(label: str, branch: str, marks: str, number: int, named: bool) -> str:
    evaluated = sum(mark in "E!" for mark in marks)
    title = f"{label}{f', {branch}' if named else ''}: {evaluated} of {len(marks)} evaluated"
    small = f"<br><small>{escape(branch)}</small>" if named else ""
    text = f"{escape(label)} <small>{evaluated} of {len(marks)}</small>{small}"
    return f"<div>{text}</div>{plots.strip(marks, title, number)}"


def _shares(units: list[dict[str, Any]]) -> list[float]:
    steps = max(unit["steps"] for unit in units)
    return [sum(step in unit["evaluated"] for unit in units) / len(units) for step in range(steps)]
