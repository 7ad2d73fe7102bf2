"""The columns of the results table, shared by the report, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ...core.words import counted_name, mebibytes, number
from ..cost import ALLOCATED
from .results import Results

VERDICT_MARKS = {"better": "+", "worse": "−", "no difference seen": "≈", "too few prompts": "?"}
"""Marks for a verdict beside a value."""

BRIEF = 3
"""Number of metrics that fit a terminal of 80 columns."""

PEAK = "peak MiB"

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "−": r"$-$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "…": r"\ldots{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


@dataclass(frozen=True)
class TableColumn:
    """A column: its title, and for each row its text and the number that it is sorted by.

    Attributes:
        name: of the metric, if the column shows one.
        small: what the report shows below the text.
    """

    title: str
    text: Callable[[dict[str, Any]], str]
    value: Callable[[dict[str, Any]], float | None]
    name: str = ""
    small: Callable[[dict[str, Any]], str] = lambda row: ""


def columns(results: Results) -> list[TableColumn]:
    """Cost first, then each metric with its interval and verdict."""
    cost = [
        TableColumn("NFE", _nfe, lambda row: _of(row, "nfe", "mean")),
        _number_column("fewer", lambda row: row["fewer_evaluations"], ".2f", "×"),
        _number_column("FLOPs in evaluations", flops, ".2f"),
        replace(_number_column("s/call", lambda row: row["seconds"], ".3g"), small=_quartiles),
        _number_column("faster", lambda row: row["faster"], ".2f", "×"),
        _number_column("history MiB", lambda row: mebibytes(row["history_bytes"]), ".3g"),
        TableColumn(PEAK, _peak, lambda row: mebibytes(_of(row, "memory", "median"))),
    ]
    return cost + [_metric_column(results, name) for name in known_metrics(results)]


def _number_column(
    title: str, value: Callable[[dict[str, Any]], float | None], form: str, unit: str = ""
) -> TableColumn:
    return TableColumn(title, lambda row: number(value(row), form, unit), value)


def _quartiles(row: dict[str, Any]) -> str:
    quartiles = row["seconds_quartiles"]
    return f"{quartiles[0]:.3g} … {quartiles[1]:.3g}" if quartiles else ""


def printed_columns(results: Results) -> list[TableColumn]:
    """The columns for print. They leave out the resident memory of the process, which needs an explanation.

    Weights, libraries and memory kept from earlier calls outweigh the differences between methods.
    """
    every = columns(results)
    return every if memory_kind(results) == ALLOCATED else [column for column in every if column.title != PEAK]


def memory_kind(results: Results) -> str:
    """What the memory peak measures; empty if the system does not report it."""
    return next((row["memory"]["kind"] for row in results.rows if row["memory"]), "")


def brief_columns(results: Results) -> list[TableColumn]:
    """The most important columns, without intervals, for a terminal."""
    wanted = ("NFE", "s/call", "faster")
    cost = [column for column in columns(results) if column.title in wanted]
    return cost + [_metric_column(results, name, brief=True) for name in known_metrics(results)[:BRIEF]]


def flops(row: dict[str, Any]) -> float | None:
    """Floating-point operations of a row's first case, in whole evaluations; those of the reference are its steps."""
    if row["method"] is None and row["nfe"]:
        return float(row["nfe"]["mean"])
    return _of(row, "flops", "evaluations")


def markdown(results: Results) -> str:
    """A table for a README, with its legend."""
    shown = printed_columns(results)
    titles = ["method", *(column.title for column in shown)]
    lines = [line(titles), line(["---", *(["---:"] * len(shown))])]
    for row in results.rows:
        lines.append(line([row["label"], *(column.text(row) for column in shown)]))
    return "\n".join([*lines, "", legend(results), ""])


def latex(results: Results) -> str:
    """A tabular with the rules of booktabs."""
    shown = printed_columns(results)
    titles = " & ".join(escape_latex(title) for title in ("method", *(column.title for column in shown)))
    body = [
        " & ".join(escape_latex(cell) for cell in (row["label"], *(column.text(row) for column in shown))) + r" \\"
        for row in results.rows
    ]
    head = [f"% {legend(results)}".replace("\n", " "), r"\begin{tabular}{l" + "r" * len(shown) + "}", r"\toprule"]
    return "\n".join([*head, titles + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def legend(results: Results, *, intervals: bool = True) -> str:
    """Explains the numbers and marks of the table."""
    counted = results.to_dict()
    size = f"{counted_name(counted['prompts'], 'prompt')} × {counted_name(len(counted['seeds']), 'seed')}"
    brackets = "; square brackets are 95 % intervals by a bootstrap over prompts" if intervals else ""
    parts = [f"{results.model}, {size}{brackets}."]
    if results.baseline:
        parts.append(
            f"Against {results.baseline}, paired: + better, − worse, ≈ no difference seen, ? too few prompts to tell."
        )
    if (kind := memory_kind(results)) == ALLOCATED:
        parts.append(f"Peak MiB: per call, {kind}; median (highest).")
    if whole := whole_titles(results):
        parts.append(f"{whole}: one value for all images of a row, without an interval.")
    if failed := [row["label"] for row in results.rows if row["error"]]:
        parts.append(f"Failed completely or partly: {', '.join(failed)}.")
    if missing := results.problems | results.uncounted:
        parts.append(f"Not computed: {', '.join(missing)}.")
    return " ".join(parts)


def whole_titles(results: Results) -> str:
    """Titles of the metrics that have one value for a whole row."""
    return ", ".join(
        results.metrics[name]["title"] for name in known_metrics(results) if results.metrics[name]["whole"]
    )


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def metric_text(metric: dict[str, Any], digits: int, *, intervals: bool = True) -> str:
    """Mean, interval and verdict of a metric."""
    if metric["mean"] is None:
        return "identical" if metric["infinite"] else "–"
    text = f"{metric['mean']:.{digits}f}"
    if intervals and metric["low"] is not None:
        text += f" [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
    if gap := metric.get("against_baseline"):
        text += f" {VERDICT_MARKS[gap['verdict']]}"
    return text


def digits_of(results: Results, name: str) -> int:
    """Decimals of a metric: fewer if its values are tens, as in dB."""
    means = (_of(row["metrics"], name, "mean") for row in results.rows)
    return 2 if any(mean is not None and abs(mean) >= 10 for mean in means) else 4


def _metric_column(results: Results, name: str, *, brief: bool = False) -> TableColumn:
    digits = digits_of(results, name) - brief

    def text(row: dict[str, Any]) -> str:
        metric = row["metrics"].get(name)
        return metric_text(metric, digits, intervals=not brief) if metric else "–"

    return TableColumn(metric_title(results.metrics[name]), text, lambda row: _of(row["metrics"], name, "mean"), name)


def metric_title(metric: dict[str, Any]) -> str:
    """``PSNR dB ↑``."""
    arrow = "↑" if metric["higher_is_better"] else "↓"
    return " ".join(part for part in (metric["title"], metric["unit"], arrow) if part)


def known_metrics(results: Results) -> list[str]:
    """The metrics that at least one row has: images may be too small for some."""
    return [name for name in results.metrics if any(_has(row, name) for row in results.rows)]


def _has(row: dict[str, Any], name: str) -> bool:
    metric = row["metrics"].get(name)
    return metric is not None and (metric["mean"] is not None or metric["infinite"] > 0)


def _nfe(row: dict[str, Any]) -> str:
    nfe = row["nfe"]
    if not nfe:
        return "–"
    if nfe["least"] == nfe["most"]:
        return str(nfe["least"])
    return f"{nfe['mean']:.1f} ({nfe['least']}…{nfe['most']})"


def _peak(row: dict[str, Any]) -> str:
    """The median, and the maximum if it differs."""
    if not row["memory"]:
        return "–"
    median, most = (f"{row['memory'][name] / 2**20:.0f}" for name in ("median", "most"))
    return median if median == most else f"{median} ({most})"


def _of(row: dict[str, Any], *names: str) -> float | None:
    value: Any = row
    for name in names:
        value = value.get(name) if value else None
    return None if value is None else float(value)


def hours(seconds: float) -> str:
    """``40 min``, ``1 h 5 min``."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
