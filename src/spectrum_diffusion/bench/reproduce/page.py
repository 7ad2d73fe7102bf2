"""The page that a reproduction writes: what ran and how long, the claims, then every table, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.words import counted_name
from ..evaluate.tables import flops, hours, line, mebibytes, number
from .claims import claims_table, header
from .paper import RMSE, Setting, is_reported, paper_value

if TYPE_CHECKING:
    from . import Reproduced

TITLES = {
    "speedup": "speed-up",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "image_reward": "ImageReward",
    "clip_score": "CLIP Score",
    "vbench_quality": "VBench Quality",
}
"""Columns of `paper.csv`, as they are written."""


def page(found: Sequence[Reproduced], figures: dict[tuple[str, str], str], command: str, seconds: float) -> str:
    """All of it as Markdown.

    Args:
        found: the tables, in the order in which they are shown.
        figures: table and model → path of a picture, from the page's folder.
        command: that makes it.
        seconds: what the work in this folder took, in all its runs.
    """
    parts = [_head(found, command, seconds)]
    if overview := _overview(found):
        parts.append(overview)
    if claims := claims_table(found):
        parts.append(f"## The paper's claims\n\n{claims}")
    parts.append("## Tables and figures")
    parts += [_part(one, figures.get((one.name, one.key), "")) for one in found]
    return "\n\n".join(parts) + "\n"


def _head(found: Sequence[Reproduced], command: str, seconds: float) -> str:
    whole = {(one.key, one.results.folder): one for one in found if one.results}
    lines = ["# The paper's tables and figures, run again", "", f"`{command}`: {_effort(whole.values(), seconds)}"]
    if environment := next((one.results.settings["environment"] for one in whole.values() if one.results), None):
        versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "threads")
        lines.append(f"{versions}, threads {environment.get('threads', '–')}.")
    seeds = {str(unit["seed"]) for one in whole.values() if one.results for unit in one.results.units}
    seed = ", ".join(sorted(seeds)) or "–"
    lines += [
        f"Numbers are means over prompts, seed {seed} each, to the untouched run of 50 steps; brackets are",
        "95 % intervals (bootstrap over prompts). NFE: ours, and in brackets the paper's. Cost: floating-point",
        "operations of the denoiser in whole evaluations, of a row's first prompt. Faster: seconds of a call to those",
        "of the untouched pipeline, taken by turns. Kept: features kept for forecasts. –: the paper's text gives no",
        "number, or it can't be had here. Small models say how methods compare on small models, and nothing of the",
        "full-size ones.",
    ]
    return "\n".join(lines)


def _effort(whole: Iterable[Reproduced], seconds: float) -> str:
    """What the sampling took, whenever it was done, and what all of it."""
    calls: dict[str, float] = {}  # by key, as rows of several tables share their units
    names = []
    for one in whole:
        calls |= {unit["key"]: unit["seconds"] for unit in (one.results.units if one.results else [])}
        names.append(one.ran)
    ran = ", ".join(dict.fromkeys(names)) or "nothing"
    sampling = f"{len(calls):,} calls of a pipeline in {hours(sum(calls.values()))}"
    return f"on {ran}, {sampling}; with thresholds, operations and metrics, this folder took {hours(seconds)}."


def _overview(found: Sequence[Reproduced]) -> str:
    """Every method on every model: PSNR, and what it cost."""
    ran = [one for one in found if one.name == "methods" and one.results]
    if not ran:
        return ""
    bold = "bold: the best of those that cost at most a tenth more than is asked for."
    parts = ["## Every method on every model", "", f"PSNR in dB, in brackets the cost in evaluations; {bold}"]
    settings = [setting for setting in ran[0].table.settings if setting.cell]
    for count in dict.fromkeys(setting.cell[1] for setting in settings if setting.cell):
        shown = {setting.cell[0]: setting.label for setting in settings if setting.cell and setting.cell[1] == count}
        best = {one.key: _best(one, _affordable(one, shown.values(), 1.1 * int(count))) for one in ran}
        parts += ["", *header([f"about {count}", *(one.ran for one in ran)])]
        parts += [
            line([name, *(_overview_cell(one, label, best[one.key]) for one in ran)]) for name, label in shown.items()
        ]
    return "\n".join(parts)


def _overview_cell(found: Reproduced, label: str, best: float | None) -> str:
    psnr = found.psnr(label)
    return "–" if psnr is None else f"{_bold(f'{psnr:.1f}', psnr == best)} ({found.cost(label)})"


def _affordable(found: Reproduced, labels: Iterable[str], most: float) -> list[str]:
    """Those of the rows that cost no more evaluations than that."""
    costs = {label: flops(found.rows[label]) for label in labels if label in found.rows}
    return [label for label, cost in costs.items() if cost is not None and cost <= most]


def _best(found: Reproduced, labels: Iterable[str]) -> float | None:
    return max((psnr for label in labels if (psnr := found.psnr(label)) is not None), default=None)


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _part(found: Reproduced, picture: str) -> str:
    title = f"### {found.name}: {found.table.title}, {found.model.name}"
    if found.results is None:
        return f"{title}\n\nNot run: {found.problem.rstrip('.')}."
    count = len({unit["prompt"] for unit in found.results.units})
    drawn = counted_name(count, "video" if found.model.video else "picture")
    lines = [title, "", f"Ours on {found.ran}, {drawn} a row."]
    if found.table.pictures:
        return "\n".join([*lines, "", f"![{found.table.title}]({picture})"]) if picture else "\n".join(lines)
    if found.table.path:
        return "\n".join([*lines, "", *_path_table(found)])
    if found.table.sweep:
        lines.append("PSNR in dB ± half of its interval; bold: the best of a column.")
        return "\n".join([*lines, "", *_sweep_table(found)])
    return "\n".join([*lines, "", *_quality_table(found)])


def _quality_table(found: Reproduced) -> list[str]:
    """NFE, cost and metrics of every setting; then the paper's numbers in one column."""
    shown = found.results.metrics if found.results and found.table.metrics else {}
    theirs = ["speedup", *found.table.metrics] if is_reported(found.name, found.model) and shown else []
    head = ["setting", "NFE", "cost", "faster", "kept", *(shown[name]["title"] for name in shown)]
    if theirs:
        head.append("the paper's " + " · ".join(TITLES[name] for name in theirs))
    return header(head) + [
        line([setting.label, *_cells(found, setting, list(shown), theirs)]) for setting in found.table.settings
    ]


def _cells(found: Reproduced, setting: Setting, shown: list[str], theirs: list[str]) -> list[str]:
    paper = [" · ".join(number(paper_value(found.name, found.model, setting, name), "g") for name in theirs)]
    row = found.rows.get(setting.label)
    if row is None or found.problem_of(setting.label):
        return [f"failed: {found.problem_of(setting.label)}", *["–"] * (3 + len(shown)), *(paper if theirs else [])]
    nfe = f"{row['nfe']['mean']:.3g} ({setting.nfe or '–'})"
    faster = number(row["faster"], ".2f", "×")
    kept = number(mebibytes(row["history_bytes"]), ".2f", " MiB")
    ours = [_interval(row["metrics"].get(name)) for name in shown]
    return [nfe, found.cost(setting.label), faster, kept, *ours, *(paper if theirs else [])]


def _sweep_table(found: Reproduced) -> list[str]:
    """One number for each row and column of the settings' cells."""
    cells = {setting.cell: setting.label for setting in found.table.settings if setting.cell}
    down, across = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (0, 1))
    best = {column: _best(found, [cells[row, column] for row in down]) for column in across}
    return header(["", *across]) + [
        line([row, *(_sweep_cell(found, cells[row, column], best[column]) for column in across)]) for row in down
    ]


def _sweep_cell(found: Reproduced, label: str, best: float | None) -> str:
    if (psnr := found.psnr(label)) is None:
        return "–"
    metric, text = found.rows[label]["metrics"]["psnr"], _bold(f"{psnr:.2f}", psnr == best)
    return text if metric["low"] is None else f"{text} ± {(metric['high'] - metric['low']) / 2:.2f}"


def _path_table(found: Reproduced) -> list[str]:
    """Latent RMSE to the untouched run after some steps."""
    steps = found.table.path
    own = found.key in found.table.models
    lines = header(["setting", *(f"step {step}" for step in steps)])
    for setting in found.table.settings:
        path = found.path(setting.label)
        lines.append(line([setting.label, *(f"{path[s - 1]:.4f}" if path and len(path) >= s else "–" for s in steps)]))
        theirs = RMSE.get((found.name, setting.row["method"])) if own else None
        if theirs:
            lines.append(line([f"{setting.label}, the paper's", *(f"{value:.4f}" for value in theirs)]))
    return lines


def _interval(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("mean") is None:
        return "–"
    low, high = metric.get("low"), metric.get("high")
    text = f"{metric['mean']:.4g}"
    return f"{text} ({low:.4g} … {high:.4g})" if low is not None and high is not None else text
