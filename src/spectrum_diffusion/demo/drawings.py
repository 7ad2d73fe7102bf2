"""The drawing of one number over the steps, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .studio import Curves

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 12, 30
TRUTH, RUN, FIT, LINE, DAMPED = "#9ca3af", "#2563eb", "#ea580c", "#059669", "#9333ea"
KEY = (
    (TRUTH, "truth, computed at every step"),
    (RUN, "evaluated"),
    (FIT, "Chebyshev fit of all evaluated points"),
    (LINE, "Taylor: line through the last two"),
    (DAMPED, "default: the line, damped by hindsight"),
)


def feature(curves: Curves) -> str:
    """The truth, the evaluated points, and three forecasts up to the next evaluated step."""
    total = len(curves.truth)
    low, high = float(curves.truth.min()), float(curves.truth.max())
    margin = 0.25 * (high - low) or 1.0

    def place(step: float, value: float) -> str:
        x = LEFT + step / max(total - 1, 1) * (WIDTH - LEFT - RIGHT)
        share = (value - low + margin) / (high - low + 2 * margin)
        return f"{x:.1f},{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    def polyline(points: Mapping[int, float], look: str) -> str:
        path = " ".join(place(step, value) for step, value in points.items())
        return f'<polyline points="{path}" fill="none" vector-effect="non-scaling-stroke" {look}/>'

    parts = [
        polyline(dict(enumerate(curves.truth)), f'stroke="{TRUTH}" stroke-width="6" stroke-opacity="0.55"'),
        polyline(curves.fit, f'stroke="{FIT}" stroke-width="2"'),
        polyline(curves.line, f'stroke="{LINE}" stroke-width="2.5" stroke-dasharray="7 4"'),
        polyline(curves.damped, f'stroke="{DAMPED}" stroke-width="3"'),
        *(_dot(place(step, float(curves.truth[step]))) for step in curves.known),
    ]
    ticks = "".join(_tick(place(step, low).split(",")[0], str(step)) for step in _round_steps(total))
    ticks += _tick(WIDTH - RIGHT, "step", "end")
    frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" style="width:100%;height:auto" '
        f'aria-label="One number of the output over the steps, with three forecasts">'
        f'<clipPath id="frame"><rect {frame}/></clipPath>'
        f'<rect {frame} fill="none" stroke="#9ca3af" stroke-opacity="0.4"/>'
        f'<g clip-path="url(#frame)">{"".join(parts)}</g>{ticks}</svg>{key(KEY)}'
    )


def key(entries: Iterable[tuple[str, str]]) -> str:
    """Colours and what they mean; the entries wrap on narrow screens."""
    items = "".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:1.1em;height:0.35em;'
        f'vertical-align:middle;background:{colour}"></span> {name}</span>'
        for colour, name in entries
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:0.2em 1.2em;font-size:0.85em">{items}</div>'


def _dot(place: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="4.5" fill="{RUN}"/>'


def _tick(x: str | int, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x}" y="{HEIGHT - 8}" font-size="12" text-anchor="{anchor}" fill="currentColor" '
        f'fill-opacity="0.7">{text}</text>'
    )


def _round_steps(total: int) -> list[int]:
    stride = max(1, round(total / 5))
    return list(range(0, total, stride))
