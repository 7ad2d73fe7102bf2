"""Shows measurements: a table in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.words import mebibytes, number

HEAD = (
    "| architecture | method | NFE | evaluated ms | skipped ms | speed-up | share of T/NFE | peak above, MiB "
    "| history, MiB | evaluations by FLOP |"
)
WIDTH, HEIGHT, MARGIN, BAR = 900, 30, 250, 20
COLOURS = {"evaluated_ms": (70, 110, 180), "skipped_ms": (230, 140, 60)}


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """A row for each method of each result, as Markdown."""
    lines = [HEAD, "|---|---|" + "---:|" * 8]
    for result in results:
        for row in result["rows"]:
            cells = [
                result["arch"],
                row["method"],
                "failed" if row.get("error") else f"{row['nfe']} of {row['steps']}",
                number(row["evaluated_ms"], ".1f"),
                number(row["skipped_ms"], ".2f"),
                number(row["speedup"], ".2f", "×"),
                number(row["share"], ".1%"),
                number(mebibytes(row["memory_above"]), ".2f"),
                number(mebibytes(row["history_bytes"]), ".2f"),
                number(row["evaluations"], ".2f"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Bars of the milliseconds of an evaluated and of a skipped step, as PNG."""
    from PIL import Image, ImageDraw

    rows = [(result["arch"], row) for result in results for row in result["rows"] if row["evaluated_ms"]]
    longest = max((max(row["evaluated_ms"], row["skipped_ms"] or 0) for _, row in rows), default=1.0)
    image = Image.new("RGB", (WIDTH, HEIGHT * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 8), "milliseconds of an evaluated (blue) and of a skipped step (orange)", fill="black")
    for place, (arch, row) in enumerate(rows, start=1):
        top = HEIGHT * place
        draw.text((8, top + 4), f"{arch}  {row['method']}"[:40], fill="black")
        for half, (name, colour) in enumerate(COLOURS.items()):
            if (value := row[name]) is not None:
                edge = MARGIN + (WIDTH - MARGIN - 80) * value / longest
                upper = top + half * BAR // 2
                draw.rectangle((MARGIN, upper, max(edge, MARGIN + 1), upper + BAR // 2 - 1), fill=colour)
                draw.text((edge + 6, upper - 2), f"{value:.2f}", fill="black")
    image.save(path)
