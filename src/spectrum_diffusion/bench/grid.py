"""A labelled grid of images: rows are prompts, columns are methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CELL = 256
"""Images smaller than this are enlarged; those larger than twice this are shrunk."""
GAP = 8
TITLE, LINE = 18, 24
PAPER, INK, PALE, RED = "#ffffff", "#111111", "#666666", "#b00020"


@dataclass(frozen=True)
class Column:
    """A heading, a second line below it, and for each row an image or the reason why it is missing."""

    title: str
    subtitle: str
    cells: Sequence[Image | str]


def make_grid(rows: Sequence[str], columns: Sequence[Column]) -> Image:
    """The grid, with the name of each row above it."""
    from PIL import Image, ImageDraw

    width, height = _cell_size(columns)
    header = 2 * LINE + 2 * GAP
    step = LINE + height + 2 * GAP
    size = (GAP + len(columns) * (width + GAP), header + len(rows) * step)
    grid = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(grid)
    for i, row in enumerate(rows):
        _text(draw, (GAP, header + i * step), row, size[0] - 2 * GAP, INK)
    for j, column in enumerate(columns):
        x = GAP + j * (width + GAP)
        _text(draw, (x, GAP), column.title, width, INK)
        _text(draw, (x, GAP + LINE), column.subtitle, width, PALE)
        for i, cell in enumerate(column.cells):
            corner = (x, header + i * step + LINE)
            if isinstance(cell, str):
                draw.rectangle((*corner, x + width - 1, corner[1] + height - 1), outline=RED)
                _paragraph(draw, (x + GAP, corner[1] + GAP), cell, width - 2 * GAP, RED)
            else:
                grid.paste(_fitted(cell, (width, height)), corner)
    return grid


def _cell_size(columns: Sequence[Column]) -> tuple[int, int]:
    images = [cell for column in columns for cell in column.cells if not isinstance(cell, str)]
    if not images:
        return CELL, CELL
    width, height = images[0].size
    longest = max(width, height)
    scale = -(-CELL // longest) if longest < CELL else min(1.0, 2 * CELL / longest)
    return round(width * scale), round(height * scale)


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    from PIL.Image import Resampling

    # Small images grow by whole factors, so that every shown pixel was sampled.
    resampling = Resampling.NEAREST if image.width < size[0] else Resampling.LANCZOS
    return image.convert("RGB").resize(size, resampling)


def _text(draw: ImageDraw, corner: tuple[int, int], text: str, width: int, fill: str) -> None:
    """Write one line, in a smaller size or cut if it would run into the next column."""
    for size in (TITLE, TITLE - 3, TITLE - 6):
        font = _font(size)
        if draw.textlength(text, font=font) <= width:
            break
    while text and draw.textlength(text, font=font) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    draw.text(corner, text, fill=fill, font=font)


def _paragraph(draw: ImageDraw, corner: tuple[int, int], text: str, width: int, fill: str) -> None:
    font = _font(TITLE - 4)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text(corner, "\n".join(lines).strip(), fill=fill, font=font)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
