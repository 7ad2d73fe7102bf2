"""Draws a figure of a table: a grid of images, or a plot of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...atomic import written
from ..evaluate import REFERENCE, files, plots
from ..evaluate.examples import beside, evenly
from ..evaluate.store import Store
from ..grid import Column, make_grid
from ..prompts import spread
from .result import TableResult

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = 3
"""Frames shown of a video."""


def draw_figure(result: TableResult, folder: Path) -> str:
    """Write the figure of a table into the folder; its file name, or "" for a table without a figure."""
    if result.results is None:
        return ""
    if result.table.images:
        name = f"{result.name}-{result.key}.png"
        with written(folder / name) as temporary:
            _grid(result).save(temporary, format="png", optimize=True)
        return name
    plot = sweep_plot(result) if result.table.sweep else ""
    if not plot:
        return ""
    name = f"{result.name}-{result.key}.svg"
    files.write_text(folder / name, plots.standalone(plot))
    return name


def sweep_plot(result: TableResult) -> str:
    """PSNR over the rows or the columns of a sweep, a curve for each of the other; "" where no row is complete."""
    x_place = 0 if result.table.sweep == "rows" else 1
    cells = {setting.cell: setting.label for setting in result.table.settings if setting.cell}
    ticks, names = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (x_place, 1 - x_place))
    if x_place:
        ticks.reverse()  # the columns begin with the most evaluations
    curves = []
    for number, name in enumerate(names):
        labels = [cells[(tick, name) if x_place == 0 else (name, tick)] for tick in ticks]
        points = [(float(x), psnr) for x, label in enumerate(labels) if (psnr := result.psnr(label)) is not None]
        if points:
            curves.append(plots.Curve(name, points, number))
    if not curves:
        return ""
    title = f"{result.table.title}, {result.ran}"
    x_name = "evaluations" if x_place else result.table.title
    return plots.lines(curves, title, x_name, "PSNR dB ↑", ticks=ticks, zero=False, lowest_first=False)


def _grid(result: TableResult) -> Image:
    assert result.results is not None
    store = Store(result.results.folder)
    every = list(dict.fromkeys(unit["prompt"] for unit in result.results.units))
    prompts = spread(every, result.table.images)
    labels = [setting.label for setting in result.table.settings]
    # The font of Pillow lacks Greek letters.
    titles = {"50 steps": REFERENCE} | {label.replace("α", "slope"): label for label in labels}
    return make_grid(prompts, [_column(title, label, result, store, prompts) for title, label in titles.items()])


def _column(title: str, label: str, result: TableResult, store: Store, prompts: list[str]) -> Column:
    """The images of a row, or why they are missing."""
    units = {unit["prompt"]: unit for unit in result.units(label)}
    cells = [
        beside(evenly(store.read_frames(units[prompt]["file"]), FRAMES))
        if prompt in units
        else result.problem_of(label)
        for prompt in prompts
    ]
    nfe = result.rows[label]["nfe"] if label in result.rows else None
    return Column(title, f"{nfe['mean']:.3g} evaluations" if nfe else "", cells)
