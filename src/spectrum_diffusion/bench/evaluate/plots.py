"""Small SVG drawings, by hand: no library to load and nothing to fetch. Colours are CSS variables of the page.

``--c0`` … are the methods' colours; a method keeps its colour in every drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 176, 16, 44
NAMES = WIDTH - RIGHT + 26
"""Where the names begin, right of the plot: beside their points they would cover others'."""
LETTERS = 16
"""Of a name there; the whole one is in the table and in the point's title."""
COLOURS = 8
LINE = 15
ROOM = (HEIGHT - LINE - TOP) // LINE + 1
"""Names that find room there, one below the other."""
ROW = 38
"""Height of a line of a forest plot: its name above its whisker."""


@dataclass(frozen=True)
class Point:
    """A method in a scatter plot: its place, its interval upwards and downwards, and its number, for the colour."""

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


class Scale:
    """From values to pixels, with room at both ends.

    Args:
        values: at least one.
        begin, end: pixels of the lower and the upper end.
        zero: whether 0 must be within.
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
    """Quality against cost; whiskers are the 95 % intervals. Of too many points, those on the front are named."""
    x = Scale([point.x for point in points], LEFT, WIDTH - RIGHT)
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    y = Scale(ends, HEIGHT - BOTTOM, TOP)
    drawn = [_point(point, x, y) for point in points]
    named = points if len(points) <= ROOM else front(points, higher_is_better=higher_is_better)[:ROOM]
    names = _names([(point.label, x(point.x), y(point.y), point.number) for point in named])
    return _svg(title, _axes(x, y, x_name, y_name) + names + "".join(drawn))


def front(points: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """The points that none betters at their cost or less, from the cheapest on."""
    sign = 1 if higher_is_better else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not found or sign * point.y > sign * found[-1].y:
            found.append(point)
    return found


def forest(bars: Sequence[Bar], title: str, name: str) -> str:
    """Differences to the baseline, one below the other, with a line at zero."""
    height = TOP + BOTTOM + ROW * len(bars)
    bottom, end = height - BOTTOM, WIDTH - LEFT / 2
    x = Scale([value for bar in bars for value in (bar.low, bar.high, 0.0)], LEFT / 2, end)
    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_round(tick)}</text>'
        for tick in x.ticks()
    ]
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    parts.append(_axis_name(name, WIDTH / 2, height - 8))
    parts += [_bar(bar, x, TOP + ROW * (i + 1) - 12) for i, bar in enumerate(bars)]
    return _svg(title, "".join(parts), height)


def lines(curves: Sequence[tuple[str, Sequence[float], int]], title: str, y_name: str) -> str:
    """Curves over the steps: (label, a value for each step, number). Of too many, those that end lowest are named."""
    x = Scale([0.0, max(len(values) for _, values, _ in curves)], LEFT, WIDTH - RIGHT, zero=True)
    y = Scale([value for _, values, _ in curves for value in values], HEIGHT - BOTTOM, TOP, zero=True)
    drawn = [
        f'<polyline class="curve" stroke="{colour(number)}" points="'
        + " ".join(f"{x(i + 1):.1f},{y(value):.1f}" for i, value in enumerate(values))
        + f'"><title>{escape(label)}</title></polyline>'
        for label, values, number in curves
    ]
    named = sorted(curves, key=lambda curve: curve[1][-1])[:ROOM]
    names = _names([(label, x(len(values)), y(values[-1]), number) for label, values, number in named])
    return _svg(title, _axes(x, y, "step", y_name) + names + "".join(drawn))


def strip(decisions: str, title: str, number: int) -> str:
    """What was done at each step: tall bars were evaluated, half ones in part, low ones forecast."""
    heights = {"E": 20, "!": 20, "p": 12, "f": 5}
    cells = [(heights.get(mark, 0), "fallback" if mark == "!" else mark) for mark in decisions]
    return _cells(cells, title, number)


def share(shares: Sequence[float], title: str, number: int) -> str:
    """The share of all pictures for which each step was evaluated."""
    return _cells([(20 * value, "E") for value in shares], title, number)


def colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _cells(cells: Sequence[tuple[float, str]], title: str, number: int) -> str:
    width = 500 / max(len(cells), 1)
    drawn = [
        f'<rect class="{kind}" x="{i * width:.2f}" y="{20 - height:.1f}" width="{0.86 * width:.2f}" '
        f'height="{height:.1f}"/>'
        for i, (height, kind) in enumerate(cells)
        if height > 0
    ]
    return (
        f'<svg class="strip" viewBox="0 0 500 20" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}" style="color:{colour(number)}"><title>{escape(title)}</title>'
        f"{''.join(drawn)}</svg>"
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
    said = escape(f"{point.label}: {_round(point.y)} at {_round(point.x)}")
    return f"{whisker}{_mark(point.number, left, top)}<title>{said}</title></g>"


def _mark(number: int, left: float, top: float) -> str:
    """A circle, square, diamond or triangle: more methods than colours are still told apart. Its group is left open."""
    shapes = ("", "M-5-5h10v10h-10z", "M0-6.5L6.5 0 0 6.5-6.5 0z", "M0-6L6 5H-6z")
    shape = shapes[number // COLOURS % len(shapes)]
    drawn = f'<path d="{shape}"/>' if shape else '<circle r="5.5"/>'
    return f'<g class="point" transform="translate({left:.1f} {top:.1f})" fill="{colour(number)}">{drawn}'


def _names(points: Sequence[tuple[str, float, float, int]]) -> str:
    """The methods' names in a column right of the plot, in the order of their points, each with a line to its own."""
    ordered = sorted(points, key=lambda point: point[2])
    places = _apart([top for _, _, top, _ in ordered])
    drawn = []
    for (label, left, top, number), place in zip(ordered, places, strict=True):
        drawn.append(
            f'<path class="leader" stroke="{colour(number)}" '
            f'd="M{left:.1f} {top:.1f}L{NAMES - 14} {place:.1f}H{NAMES - 3}"/>'
            f'<text class="name" x="{NAMES}" y="{place + 4:.1f}" fill="{colour(number)}">{escape(_short(label))}</text>'
        )
    return "".join(drawn)


def _apart(tops: Sequence[float]) -> list[float]:
    """Heights in their order, moved so that lines of text don't overlap, and none leaves the drawing if it can."""
    places: list[float] = []
    for top in tops:
        places.append(max(top, places[-1] + LINE if places else TOP))
    limit = float(HEIGHT - LINE)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - LINE
    return places


def _short(label: str) -> str:
    return label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"


def _axes(x: Scale, y: Scale, x_name: str, y_name: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks():
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_round(tick)}</text>'
        )
    for tick in x.ticks():
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_round(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_axis_name(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis-name" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    return "".join(parts)


def _axis_name(name: str, x: float, y: float) -> str:
    return f'<text class="axis-name" x="{x:.0f}" y="{y}" text-anchor="middle">{escape(name)}</text>'


def _bar(bar: Bar, x: Scale, top: float) -> str:
    said = escape(f"{bar.label}: {_round(bar.mean)} [{_round(bar.low)}, {_round(bar.high)}], {bar.verdict}")
    return (
        f'<text class="name" x="{LEFT / 2}" y="{top - 11}">{escape(bar.label)}: {escape(bar.verdict)}</text>'
        f'<path class="whisker" stroke="{colour(bar.number)}" d="M{x(bar.low):.1f} {top}H{x(bar.high):.1f}"/>'
        f"{_mark(bar.number, x(bar.mean), top)}<title>{said}</title></g>"
    )


def _round(value: float) -> str:
    return f"{value:.4g}"


def _svg(title: str, content: str, height: float = HEIGHT) -> str:
    kind = "plot tall" if height > 2 * HEIGHT else "plot"
    box = f"0 0 {WIDTH} {height:.0f}"
    return f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{escape(title)}">{content}</svg>'
