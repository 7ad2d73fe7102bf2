"""The page that a reproduction writes: what ran and for how long, the claims, then every table beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...core.words import counted_name, mebibytes, number
from ..evaluate.tables import flops, hours, line
from .claims import claims_table, header
from .paper import RMSE, Setting, is_reported, paper_value
from .result import TableResult

TITLES = {
    "speedup": "speed-up",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "image_reward": "ImageReward",
    "clip_score": "CLIP Score",
    "vbench_quality": "VBench Quality",
}
"""Titles of the columns of `paper.csv`."""

EXPLANATION = """\
Numbers are means over prompts, with seed {seed} each, compared with the reference of 50 steps. Brackets are 95 %
intervals (bootstrap over prompts). NFE: ours, and the paper's in brackets. Cost: floating-point operations of the
denoiser in whole evaluations, for the first prompt of a row. Faster: seconds per call of the reference divided by those
of the row; the rows took turns. Kept: features kept for forecasts. –: the paper's text gives no number, or it is not
available here. Small models show how methods compare on small models, and nothing about the full-size ones."""

OVERVIEW_LEGEND = """\
PSNR in dB, with the cost in evaluations in brackets; bold: the best of the rows that cost at most a tenth more than the
heading says."""

SWEEP_LEGEND = "PSNR in dB ± half of its 95 % interval; bold: the best of a column."


def results_page(
    results: Sequence[TableResult], figures: dict[tuple[str, str], str], command: str, seconds: float
) -> str:
    """The page as Markdown.

    Args:
        results: the tables, in the order in which they are shown.
        figures: table and model → file name of a figure.
        command: the command line that writes the page.
        seconds: duration of the work in this folder over all runs.
    """
    ran = [result for result in results if result.results]
    claims = claims_table(ran)
    parts = [_head(ran, command, seconds), _overview(ran), claims and f"## The paper's claims\n\n{claims}"]
    parts.append("## Tables and figures")
    parts += [_table(result, figures.get((result.name, result.key), "")) for result in results]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(ran: Sequence[TableResult], command: str, seconds: float) -> str:
    evaluations = {result.results.folder: result.results for result in ran if result.results}
    units = [unit for results in evaluations.values() for unit in results.units]
    lines = ["# The paper's tables and figures, run again", ""]
    lines.append(f"`{command}`: {_effort(list(dict.fromkeys(result.ran for result in ran)), units, seconds)}")
    for results in list(evaluations.values())[:1]:
        environment = results.settings["environment"]
        versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "threads")
        lines.append(f"{versions}, threads {environment.get('threads', '–')}.")
    seeds = sorted({str(unit["seed"]) for unit in units})
    return "\n".join([*lines, EXPLANATION.format(seed=", ".join(seeds) or "–")])


def _effort(names: list[str], units: list[dict[str, Any]], seconds: float) -> str:
    """How many calls there were and how long they took, in all runs, and the duration of everything."""
    calls = {unit["key"]: unit["seconds"] for unit in units}  # rows of several tables share units
    sampling = f"{len(calls):,} calls of a pipeline in {hours(sum(calls.values()))}"
    everything = f"with calibration, counting of operations and metrics, this folder took {hours(seconds)}"
    return f"on {', '.join(names) or 'nothing'}, {sampling}; {everything}."


def _overview(ran: Sequence[TableResult]) -> str:
    """PSNR and cost of every method on every model."""
    shown = [result for result in ran if result.name == "methods"]
    if not shown:
        return ""
    parts = ["## Every method on every model", "", OVERVIEW_LEGEND]
    cells = {setting.cell: setting.label for setting in shown[0].table.settings if setting.cell}
    for count in dict.fromkeys(column for _, column in cells):
        labels = {row: label for (row, column), label in cells.items() if column == count}
        best = {result.key: _best(result, _affordable(result, labels.values(), 1.1 * int(count))) for result in shown}
        parts += ["", *header([f"about {count}", *(result.ran for result in shown)])]
        for row, label in labels.items():
            parts.append(line([row, *(_overview_cell(result, label, best[result.key]) for result in shown)]))
    return "\n".join(parts)


def _overview_cell(result: TableResult, label: str, best: float | None) -> str:
    psnr = result.psnr(label)
    return "–" if psnr is None else f"{_bold(f'{psnr:.1f}', psnr == best)} ({result.cost(label)})"


def _affordable(result: TableResult, labels: Iterable[str], most: float) -> list[str]:
    """The rows that cost at most that many evaluations."""
    costs = {label: flops(result.rows[label]) for label in labels if label in result.rows}
    return [label for label, cost in costs.items() if cost is not None and cost <= most]


def _best(result: TableResult, labels: Iterable[str]) -> float | None:
    return max((psnr for label in labels if (psnr := result.psnr(label)) is not None), default=None)


def _bold(text: str, condition: bool) -> str:
    return f"**{text}**" if condition else text


def _table(result: TableResult, figure: str) -> str:
    table = result.table
    title = f"### {result.name}: {table.title}, {result.model.name}"
    if result.results is None:
        return f"{title}\n\nNot run: {result.problem.rstrip('.')}."
    count = len({unit["prompt"] for unit in result.results.units})
    lines = [
        title,
        "",
        f"Ours on {result.ran}, {counted_name(count, 'video' if result.model.video else 'image')} per row.",
    ]
    if table.path:
        lines += ["", *_path_table(result)]
    elif table.sweep:
        lines += [SWEEP_LEGEND, "", *_sweep_table(result)]
    elif not table.images:
        lines += ["", *_quality_table(result)]
    if figure:
        lines += ["", f"![{table.title}]({figure})"]
    return "\n".join(lines)


def _quality_table(result: TableResult) -> list[str]:
    """NFE, cost and metrics of every setting, then the paper's numbers in one column."""
    metrics = result.results.metrics if result.results and result.table.metrics else {}
    columns = ["speedup", *result.table.metrics] if is_reported(result.name, result.model) and metrics else []
    head = ["setting", "NFE", "cost", "faster", "kept", *(metrics[name]["title"] for name in metrics)]
    if columns:
        head.append("the paper's " + " · ".join(TITLES[name] for name in columns))
    return header(head) + [
        line([setting.label, *_cells(result, setting, list(metrics)), *_paper_cell(result, setting, columns)])
        for setting in result.table.settings
    ]


def _cells(result: TableResult, setting: Setting, metrics: list[str]) -> list[str]:
    if problem := result.problem_of(setting.label):
        return [f"failed: {problem}", *["–"] * (3 + len(metrics))]
    row = result.rows[setting.label]
    nfe = f"{row['nfe']['mean']:.3g} ({setting.nfe or '–'})"
    faster = number(row["faster"], ".2f", "×")
    kept = number(mebibytes(row["history_bytes"]), ".2f", " MiB")
    return [nfe, result.cost(setting.label), faster, kept, *(_interval(row["metrics"].get(name)) for name in metrics)]


def _paper_cell(result: TableResult, setting: Setting, columns: list[str]) -> list[str]:
    values = [number(paper_value(result.name, result.model, setting, name), "g") for name in columns]
    return [" · ".join(values)] if columns else []


def _sweep_table(result: TableResult) -> list[str]:
    """One number for each row and column of the settings' cells."""
    cells = {setting.cell: setting.label for setting in result.table.settings if setting.cell}
    rows, columns = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (0, 1))
    best = {column: _best(result, [cells[row, column] for row in rows]) for column in columns}
    return header(["", *columns]) + [
        line([row, *(_sweep_cell(result, cells[row, column], best[column]) for column in columns)]) for row in rows
    ]


def _sweep_cell(result: TableResult, label: str, best: float | None) -> str:
    if (psnr := result.psnr(label)) is None:
        return "–"
    metric, text = result.rows[label]["metrics"]["psnr"], _bold(f"{psnr:.2f}", psnr == best)
    return text if metric["low"] is None else f"{text} ± {(metric['high'] - metric['low']) / 2:.2f}"


def _path_table(result: TableResult) -> list[str]:
    """Latent RMSE against the reference after some steps."""
    steps = result.table.path
    lines = header(["setting", *(f"step {step}" for step in steps)])
    for setting in result.table.settings:
        path = result.path(setting.label) or []
        lines.append(line([setting.label, *(f"{path[s - 1]:.4f}" if len(path) >= s else "–" for s in steps)]))
        paper = RMSE.get((result.name, setting.row["method"]))
        if paper and result.key in result.table.models:
            lines.append(line([f"{setting.label}, the paper's", *(f"{value:.4f}" for value in paper)]))
    return lines


def _interval(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("mean") is None:
        return "–"
    low, high = metric.get("low"), metric.get("high")
    text = f"{metric['mean']:.4g}"
    return f"{text} ({low:.4g} … {high:.4g})" if low is not None and high is not None else text
