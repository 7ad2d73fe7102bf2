"""A summary as HTML for notebooks and pages: a compact table and a strip of the steps, without scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .summary import Summary

WIDTH, TALL, LOW = 500, 20, 5
RUN, FALLBACK, SKIPPED = "#2563eb", "#dc2626", "#94a3b8"


def strip(total: int, evaluated: Iterable[int], fallbacks: Iterable[int] = ()) -> str:
    """The steps as SVG: tall bars are evaluated steps, red ones fallbacks, low grey ones skipped."""
    run, forced = set(evaluated), set(fallbacks)
    width = WIDTH / max(total, 1)
    label = f"{len(run)} of {total} steps were evaluated"
    bars = []
    for step in range(total):
        colour = FALLBACK if step in forced else RUN if step in run else SKIPPED
        height = TALL if step in run else LOW
        what = "fallback" if step in forced else "evaluated" if step in run else "skipped"
        bars.append(
            f'<rect x="{step * width:.2f}" y="{TALL - height}" width="{0.84 * width:.2f}" height="{height}" '
            f'fill="{colour}"><title>step {step}: {what}</title></rect>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {TALL}" role="img" aria-label="{label}" preserveAspectRatio="none" '
        f'style="width:100%;max-width:{WIDTH}px;height:{TALL}px;display:block">{"".join(bars)}</svg>'
    )


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table style="margin:0.3em 0">{cells}</table>'


def summary_html(summary: Summary) -> str:
    """The summary of a generation, stage by stage."""
    if summary.stages:
        return "".join(f"<div><b>{escape(stage.stage)}</b>{summary_html(stage)}</div>" for stage in summary.stages)
    total = max(summary.steps, max(summary.evaluated, default=-1) + 1)
    return (
        f'<div style="max-width:{WIDTH}px">{strip(total, summary.evaluated, summary.fallbacks)}'
        f"{table(_rows(summary))}</div>"
    )


def _rows(summary: Summary) -> Iterable[tuple[str, str]]:
    yield "method", f"{summary.method} at {summary.site}"
    yield "steps", f"{summary.steps}, {summary.nfe} evaluated ({summary.speedup:.2f}x fewer)"
    for name, branch in summary.branches.items():
        counts = {"evaluated": branch.evaluated, "forecast": branch.forecast, "partial": branch.partial}
        yield f"branch {name}", ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    yield from ((f"fallback at step {step}", reason) for step, reason in summary.fallbacks.items())
    yield from (("note", text + (f" ({count} times)" if count > 1 else "")) for text, count in summary.notes.items())
    if summary.package:
        yield "package", " ".join(summary.package)
    else:
        yield "history", f"{summary.history_bytes / 2**20:.1f} MiB at peak"
    if summary.milliseconds:
        yield "time", ", ".join(f"{part} {spent:.0f} ms" for part, spent in summary.milliseconds.items())
    if summary.flops:
        yield "cost", str(summary.flops)
