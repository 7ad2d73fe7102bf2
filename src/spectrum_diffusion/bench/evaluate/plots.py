"""Small plots as SVG, without a library and without anything to fetch. Their style is in ``templates/plots.css``.

A method keeps its colour, ``--c0`` and so on, in every plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 176, 16, 44
NAMES = WIDTH - RIGHT + 26
"""Where the names begin, right of the plot: beside their points they would cover others."""
LETTERS = 18
"""Letters shown of a name; the table and the tooltip of the point show the whole name."""
COLOURS = 8
LINE = 15
ROOM = (HEIGHT - LINE - TOP) // LINE + 1
"""How many names fit, one below the other."""
ROW = 38
"""Height of a row of a forest plot: its name above its whisker."""


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot: its position, its interval, and its number, which chooses the colour."""

    label: str
    x: float
    y: float
    low: float | None
    high: float | None
    number: int


@dataclass(frozen=True)
class Bar:
    """A difference with its interval, in a forest plot."""

    label: str
    mean: float
    low: float
    high: float
    number: int
    verdict: str


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]
    number: int


class Scale:
    """Maps values to pixels, with a margin at both ends.

    Args:
        values: at least one.
        begin, end: pixels of the lower and the upper end.
        zero: whether the scale includes 0.
    """

    def __init__(self, values: Sequence[float], begin: float, end: float, *, zero: bool = False) -> None:
        low, high = min(values), max(values)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        margin = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
        self.low, self.high = (0.0 if zero and low == 0 else low - margin), high + margin
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        return self._begin + (value - self.low) / (self.high - self.low) * (self._end - self._begin)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round numbers within the scale."""
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(self.low / step)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step) + 1)]


def scatter(points: Sequence[Point], title: str, x_name: str, y_name: str, *, higher_is_better: bool) -> str:
    """Quality against cost, with 95 % intervals as whiskers. If there are too many points, only the front is named."""
    x = Scale([point.x for point in points], LEFT, WIDTH - RIGHT)
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    y = Scale(ends, HEIGHT - BOTTOM, TOP)
    marks = [_point(point, x, y) for point in points]
    named = points if len(points) <= ROOM else front(points, higher_is_better=higher_is_better)[:ROOM]
    names = _names([(point.label, x(point.x), y(point.y), point.number) for point in named])
    return _svg(title, _axes(x, y, x_name, y_name) + names + "".join(marks))


def front(points: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """The points that no other point beats at the same cost or less, the cheapest first."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not best or sign * point.y > sign * best[-1].y:
            best.append(point)
    return best


def forest(bars: Sequence[Bar], title: str, name: str) -> str:
    """Differences to the baseline, one below the other, with a line at zero."""
    height = TOP + BOTTOM + ROW * len(bars)
    bottom, end = height - BOTTOM, WIDTH - LEFT / 2
    x = Scale([value for bar in bars for value in (bar.low, bar.high, 0.0)], LEFT / 2, end)
    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>' for tick in x.ticks()
    ]
    parts += [_x_tick(x(tick), bottom, _round(tick)) for tick in x.ticks()]
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(_axis_name(name, WIDTH / 2, height - 8))
    parts += [_bar(bar, x, TOP + ROW * (i + 1) - 12) for i, bar in enumerate(bars)]
    return _svg(title, "".join(parts), height)


def lines(
    curves: Sequence[Curve],
    title: str,
    x_name: str,
    y_name: str,
    *,
    ticks: Sequence[str] | None = None,
    zero: bool = True,
    lowest_first: bool = True,
) -> str:
    """Curves; if there are too many, only those that end best are named.

    Args:
        ticks: names of the positions 0, 1, … on the x axis; default: numbers.
        zero: whether both axes include 0.
        lowest_first: whether low values are the best.
    """
    points = [point for curve in curves for point in curve.points]
    x = Scale([x for x, _ in points], LEFT, WIDTH - RIGHT, zero=zero)
    y = Scale([y for _, y in points], HEIGHT - BOTTOM, TOP, zero=zero)
    polylines = [
        f'<polyline class="curve" stroke="{colour(curve.number)}" points="'
        + " ".join(f"{x(left):.1f},{y(value):.1f}" for left, value in curve.points)
        + f'"><title>{escape(curve.label)}</title></polyline>'
        for curve in curves
    ]
    named = sorted(curves, key=lambda curve: curve.points[-1][1], reverse=not lowest_first)[:ROOM]
    ends = [(curve.label, x(curve.points[-1][0]), y(curve.points[-1][1]), curve.number) for curve in named]
    return _svg(title, _axes(x, y, x_name, y_name, ticks) + _names(ends) + "".join(polylines))


def strip(decisions: str, title: str, number: int) -> str:
    """What a method did at each step: tall bars are evaluated steps, half ones partial, low ones skipped."""
    heights = {"E": 20, "!": 20, "p": 12, "f": 5}
    cells = [(heights.get(mark, 0), "fallback" if mark == "!" else mark) for mark in decisions]
    return _cells(cells, title, number)


def share(shares: Sequence[float], title: str, number: int) -> str:
    """The share of all generations that evaluated each step."""
    return _cells([(20 * value, "E") for value in shares], title, number)


def colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def stylesheet() -> str:
    """The colours and fonts of all plots."""
    return (resources.files(__package__) / "templates" / "plots.css").read_text(encoding="utf-8")


def standalone(svg: str) -> str:
    """A plot as a file of its own, with its stylesheet."""
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" font-family="system-ui, sans-serif" '
    return svg.replace("<svg ", start, 1).replace(">", f"><style>{stylesheet()}</style>", 1) + "\n"


def _cells(cells: Sequence[tuple[float, str]], title: str, number: int) -> str:
    width = 500 / max(len(cells), 1)
    bars = [
        f'<rect class="{kind}" x="{i * width:.2f}" y="{20 - height:.1f}" width="{0.86 * width:.2f}" '
        f'height="{height:.1f}"/>'
        for i, (height, kind) in enumerate(cells)
        if height > 0
    ]
    return (
        f'<svg class="strip" viewBox="0 0 500 20" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}" style="color:{colour(number)}"><title>{escape(title)}</title>'
        f"{''.join(bars)}</svg>"
    )


def _point(point: Point, x: Scale, y: Scale) -> str:
    left, top = x(point.x), y(point.y)
    whisker = ""
    if point.low is not None and point.high is not None:
        whisker = (
            f'<path class="whisker" stroke="{colour(point.number)}" '
            f'd="M{left:.1f} {y(point.low):.1f}V{y(point.high):.1f}'
            f'm-4 0h8M{left - 4:.1f} {y(point.low):.1f}h8"/>'
        )
    tooltip = f"{point.label}: {_round(point.y)} at {_round(point.x)}"
    return whisker + _mark(point.number, left, top, tooltip)


def _mark(number: int, left: float, top: float, tooltip: str) -> str:
    """A circle, square, diamond or triangle, which distinguishes methods that share a colour."""
    shapes = ("", "M-5-5h10v10h-10z", "M0-6.5L6.5 0 0 6.5-6.5 0z", "M0-6L6 5H-6z")
    shape = shapes[number // COLOURS % len(shapes)]
    element = f'<path d="{shape}"/>' if shape else '<circle r="5.5"/>'
    place = f'transform="translate({left:.1f} {top:.1f})" fill="{colour(number)}"'
    return f'<g class="point" {place}>{element}<title>{escape(tooltip)}</title></g>'


def _names(points: Sequence[tuple[str, float, float, int]]) -> str:
    """The names in a column right of the plot, in the order of their points, each with a line to its point."""
    ordered = sorted(points, key=lambda point: point[2])
    heights = _spaced([top for _, _, top, _ in ordered])
    parts = []
    for (label, left, top, number), height in zip(ordered, heights, strict=True):
        short = label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"
        parts.append(
            f'<path class="leader" stroke="{colour(number)}" '
            f'd="M{left:.1f} {top:.1f}L{NAMES - 14} {height:.1f}H{NAMES - 3}"/>'
            f'<text class="name" x="{NAMES}" y="{height + 4:.1f}" fill="{colour(number)}">{escape(short)}</text>'
        )
    return "".join(parts)


def _spaced(tops: Sequence[float]) -> list[float]:
    """Ascending heights, moved so that lines of text do not overlap and, if possible, stay within the plot."""
    heights: list[float] = []
    for top in tops:
        heights.append(max(top, heights[-1] + LINE if heights else TOP))
    limit = float(HEIGHT - LINE)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - LINE
    return heights


def _axes(x: Scale, y: Scale, x_name: str, y_name: str, ticks: Sequence[str] | None = None) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_round(tick)}</text>'
        for tick in y.ticks()
    ]
    x_ticks = [(tick, _round(tick)) for tick in x.ticks()] if ticks is None else list(enumerate(ticks))
    parts += [_x_tick(x(tick), bottom, text) for tick, text in x_ticks]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_axis_name(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis-name" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    return "".join(parts)


def _x_tick(left: float, bottom: float, text: str) -> str:
    return f'<text class="tick" x="{left:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'


def _axis_name(name: str, x: float, y: float) -> str:
    return f'<text class="axis-name" x="{x:.0f}" y="{y}" text-anchor="middle">{escape(name)}</text>'


def _bar(bar: Bar, x: Scale, top: float) -> str:
    tooltip = f"{bar.label}: {_round(bar.mean)} [{_round(bar.low)}, {_round(bar.high)}], {bar.verdict}"
    return (
        f'<text class="name" x="{LEFT / 2}" y="{top - 11}">{escape(bar.label)}: {escape(bar.verdict)}</text>'
        f'<path class="whisker" stroke="{colour(bar.number)}" d="M{x(bar.low):.1f} {top}H{x(bar.high):.1f}"/>'
        f"{_mark(bar.number, x(bar.mean), top, tooltip)}"
    )


def _round(value: float) -> str:
    return f"{value:.4g}"


def _svg(title: str, content: str, height: float = HEIGHT) -> str:
    kind = "plot tall" if height > 2 * HEIGHT else "plot"
    box = f"0 0 {WIDTH} {height:.0f}"
    return f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{escape(title)}">{content}</svg>'
