"""The page that a reproduction writes: what ran and how long, the claims, then every table, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .claims import claims_table
from .paper import MODELS, RMSE, Setting, paper_value

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


def page(found: Sequence[Reproduced], figures: dict[tuple[str, str], str], seconds: float) -> str:
    """All of it as Markdown.

    Args:
        found: the tables, in the order in which they are shown.
        figures: table and model → path of a picture, from the page's folder.
        seconds: that the whole took.
    """
    parts = [_head(found, seconds)]
    if overview := _overview(found):
        parts.append(overview)
    if claims := claims_table(found):
        parts.append(f"## The paper's claims\n\n{claims}")
    parts.append("## Tables and figures")
    parts += [_part(one, figures.get((one.name, one.key), "")) for one in found]
    return "\n\n".join(parts) + "\n"


def _head(found: Sequence[Reproduced], seconds: float) -> str:
    ran = list(dict.fromkeys(one.ran for one in found if one.results))
    names = list(dict.fromkeys(one.name for one in found))
    lines = [
        "# The paper's tables and figures, run again",
        "",
        f"`spectrum reproduce {' '.join(names)}` on {', '.join(ran) or 'nothing'}: {_span(seconds)} in all.",
    ]
    if environment := next((one.results.settings["environment"] for one in found if one.results), None):
        versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "threads")
        lines.append(f"{versions}, {environment.get('threads', '–')} threads.")
    lines += [
        "Numbers are means over prompts, seed 0 each, to the untouched run of 50 steps; brackets are 95 % intervals",
        "(bootstrap over prompts). Cost: floating-point operations of the denoiser in whole evaluations. –: the",
        "paper's text gives no number, or it can't be had here. Small models say how methods compare on small models,",
        "and nothing of the full-size ones.",
    ]
    return "\n".join(lines)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _overview(found: Sequence[Reproduced]) -> str:
    """Every method on every model: PSNR, and what it cost."""
    ran = [one for one in found if one.name == "methods" and one.results]
    if not ran:
        return ""
    rows = {one.key: one.rows for one in ran}
    parts = [
        "## Every method on every model",
        "",
        "PSNR in dB, and in brackets the cost in evaluations; bold: the best.",
    ]
    for count in dict.fromkeys(setting.cell[1] for setting in ran[0].table.settings if setting.cell):
        settings = [setting for setting in ran[0].table.settings if setting.cell and setting.cell[1] == count]
        best = {key: max((_psnr(rows[key].get(s.label)) for s in settings), default=0.0) for key in rows}
        parts += ["", *_header([f"about {count}", *(one.ran for one in ran)])]
        for setting in settings:
            cells = [_overview_cell(rows[key].get(setting.label), best[key]) for key in rows]
            parts.append(_line([setting.cell[0] if setting.cell else setting.label, *cells]))
    return "\n".join(parts)


def _overview_cell(row: dict[str, Any] | None, best: float) -> str:
    psnr = _psnr(row)
    if row is None or row["error"] or psnr <= 0:
        return "–"
    text = f"**{psnr:.1f}**" if psnr == best else f"{psnr:.1f}"
    return f"{text} ({_cost(row)})"


def _psnr(row: dict[str, Any] | None) -> float:
    found = row["metrics"].get("psnr") if row else None
    return float(found["mean"]) if found and found["mean"] is not None else 0.0


def _part(found: Reproduced, picture: str) -> str:
    title = f"### {found.name}: {found.table.title}, {found.model.name}"
    if found.results is None:
        return f"{title}\n\nNot run: {found.problem}."
    pictures = len({unit["prompt"] for unit in found.results.units})
    what = "videos" if found.model.video else "pictures"
    lines = [title, "", f"Ours on {found.ran}, {pictures} {what} a row."]
    if found.table.pictures:
        return "\n".join([*lines, "", f"![{found.table.title}]({picture})"]) if picture else "\n".join(lines)
    if found.table.path:
        return "\n".join([*lines, "", *_path_table(found)])
    if found.table.sweep:
        return "\n".join(
            [*lines, "PSNR in dB ± half of its interval; bold: the best of a column.", "", *_sweep_table(found)]
        )
    return "\n".join([*lines, "", *_quality_table(found)])


def _quality_table(found: Reproduced) -> list[str]:
    """NFE, cost and metrics of every setting; then the paper's numbers in one column."""
    assert found.results is not None
    shown = found.results.metrics
    theirs = ["speedup", *found.table.metrics] if found.table.metrics else []
    head = ["setting", "NFE", "cost", "faster", "memory", *(shown[name]["title"] for name in shown)]
    if theirs:
        head.append("the paper's " + " · ".join(TITLES[name] for name in theirs))
    rows = found.rows
    return _header(head) + [
        _line([setting.label, *_cells(found, setting, rows.get(setting.label), list(shown), theirs)])
        for setting in found.table.settings
    ]


def _cells(
    found: Reproduced, setting: Setting, row: dict[str, Any] | None, shown: list[str], theirs: list[str]
) -> list[str]:
    paper = [" · ".join(_number(paper_value(found.name, found.model, setting, name)) for name in theirs)]
    problem = row["error"] if row else found.problems.get(setting.label, "")
    if row is None or problem:
        return [f"not run: {problem}", *["–"] * (3 + len(shown)), *(paper if theirs else [])]
    nfe = f"{row['nfe']['mean']:.3g}" if row["nfe"] else "–"
    faster = f"{row['faster']:.2f}×" if row["faster"] else "–"
    kept = row["history_bytes"]
    memory = f"{kept / 2**20:.2f} MiB" if kept is not None else "–"
    ours = [_interval(row["metrics"].get(name)) for name in shown]
    return [nfe, _cost(row), faster, memory, *ours, *(paper if theirs else [])]


def _sweep_table(found: Reproduced) -> list[str]:
    """One number for each row and column of the settings' cells."""
    rows = found.rows
    cells = {setting.cell: rows.get(setting.label) for setting in found.table.settings if setting.cell}
    down, across = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (0, 1))
    best = {column: max(_psnr(cells[row, column]) for row in down) for column in across}
    lines = _header(["", *across])
    for row in down:
        lines.append(_line([row, *(_sweep_cell(cells[row, column], best[column]) for column in across)]))
    return lines


def _sweep_cell(row: dict[str, Any] | None, best: float) -> str:
    if (psnr := _psnr(row)) <= 0 or row is None:
        return "–"
    metric = row["metrics"]["psnr"]
    text = f"**{psnr:.2f}**" if psnr == best else f"{psnr:.2f}"
    return text if metric["low"] is None else f"{text} ± {(metric['high'] - metric['low']) / 2:.2f}"


def _path_table(found: Reproduced) -> list[str]:
    """Latent RMSE to the untouched run after some steps."""
    steps, rows = found.table.path, found.rows
    own = found.key in found.table.models
    lines = _header(["setting", *(f"step {step}" for step in steps)])
    for setting in found.table.settings:
        path = rows.get(setting.label, {}).get("path_rmse")
        lines.append(_line([setting.label, *(f"{path[s - 1]:.4f}" if path and len(path) >= s else "–" for s in steps)]))
        theirs = RMSE.get((found.name, setting.row["method"])) if own else None
        if theirs:
            lines.append(_line([f"{setting.label}, the paper's", *(f"{value:.4f}" for value in theirs)]))
    return lines


def _cost(row: dict[str, Any]) -> str:
    return f"{row['flops']['evaluations']:.1f}" if row["flops"] else "–"


def _interval(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("mean") is None:
        return "–"
    low, high = metric.get("low"), metric.get("high")
    text = f"{metric['mean']:.4g}"
    return f"{text} ({low:.4g} … {high:.4g})" if low is not None and high is not None else text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---" * len(cells) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


__all__ = ["MODELS", "page"]
