"""Make the drawings of README and docs/how-it-works.md: `python docs/drawings.py`.

Schedules and weights come from the library, and the feature in `feature.svg` from the model that ships, so that the
drawings show what the code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion import forecast, schedule

FOLDER = Path(__file__).with_name("images")
STEPS = 50
DARK, GREY, LIGHT = "#1f2937", "#6b7280", "#d1d5db"
RUN, SKIP, FIT, LINE = "#2563eb", "#eef2f7", "#ea580c", "#059669"


class Drawing:
    """An SVG of rectangles, lines and words on white."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' font-family="Helvetica, Arial, sans-serif" font-size="14">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, word: str = "", *, runs: bool = True) -> None:
        """A part of a denoiser: filled if it runs, dashed if it is skipped."""
        look = f'fill="{RUN}"' if runs else f'fill="{SKIP}" stroke="{GREY}" stroke-dasharray="4 3"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" {look}/>')
        self.word(x + width / 2, y + height / 2 + 5, word, colour="white" if runs else GREY, anchor="middle")

    def word(self, x: float, y: float, word: str, *, colour: str = DARK, anchor: str = "start", size: int = 14) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{escape(word)}</text>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, colour: str = DARK) -> None:
        """A line with a head, to the right or downwards or upwards."""
        dx, dy = np.sign(x2 - x1) * 6, np.sign(y2 - y1) * 6
        head = f"{x2:g},{y2:g} {x2 - dx - dy / 2:g},{y2 - dy - dx / 2:g} {x2 - dx + dy / 2:g},{y2 - dy + dx / 2:g}"
        self.curve([(x1, y1), (x2 - dx / 2, y2 - dy / 2)], colour)
        self.parts.append(f'<polygon points="{head}" fill="{colour}"/>')

    def curve(
        self, points: Sequence[tuple[float, float]], colour: str = DARK, width: float = 1.5, dash: str = ""
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = f'stroke="{colour}" stroke-width="{width}" fill="none" stroke-dasharray="{dash}"'
        self.parts.append(f'<polyline points="{path}" {look}/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 4) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')

    def ticks(self, x: float, y: float, evaluated: Sequence[int], width: float = 11.4) -> None:
        """One cell for each step, filled if it is evaluated."""
        for step in range(STEPS):
            fill = RUN if step in evaluated else SKIP
            self.parts.append(
                f'<rect x="{x + step * width:g}" y="{y:g}" width="{width - 2:g}" height="20" fill="{fill}"/>'
            )

    def save(self, name: str) -> None:
        (FOLDER / name).write_text("\n".join([*self.parts, "</svg>"]) + "\n", encoding="utf-8")


def steps() -> None:
    """The README's drawing: the schedule, and the two kinds of steps below it."""
    drawing = Drawing(860, 372, "What happens at an evaluated step and at a skipped step")
    evaluated = schedule.adaptive(STEPS)
    drawing.word(20, 28, f"The {STEPS} steps of a sampling loop: {len(evaluated)} are evaluated, the others skipped")
    drawing.ticks(20, 40, evaluated, width=16.4)
    for step in (0, 10, 20, 30, 40, 49):
        drawing.word(20 + step * 16.4 + 7, 76, str(step), colour=GREY, anchor="middle", size=12)
    _lane(drawing, 122, runs=True)
    _lane(drawing, 276, runs=False)
    drawing.word(20, 112, "Evaluated step: every block runs, and the feature after the last block is kept")
    drawing.word(20, 266, "Skipped step: no block runs, and the feature is forecast from all kept ones")
    drawing.arrow(588, 162, 588, 190, FIT)
    drawing.parts.append(f'<rect x="360" y="192" width="300" height="34" rx="4" fill="none" stroke="{FIT}"/>')
    drawing.word(510, 214, "kept features of this generation", colour=FIT, anchor="middle")
    drawing.arrow(588, 226, 588, 290, FIT)
    drawing.word(598, 250, "weighted sum", colour=FIT)
    drawing.word(
        20,
        352,
        "The weights depend only on which steps were evaluated. One weighted sum replaces all blocks.",
        colour=GREY,
    )
    drawing.save("steps.svg")


def _lane(drawing: Drawing, y: float, *, runs: bool) -> None:
    """A denoiser from its latents to its prediction."""
    drawing.word(20, y + 25, "latents")
    drawing.arrow(72, y + 20, 92, y + 20)
    drawing.box(94, y, 104, 40, "embeddings")
    drawing.arrow(198, y + 20, 216, y + 20)
    for number, word in enumerate(("block 1", "block 2", "…", "block N")):
        drawing.box(218 + number * 86, y, 78, 40, word, runs=runs)
    drawing.arrow(558, y + 20, 628, y + 20)
    drawing.box(630, y, 130, 40, "norm, projection")
    drawing.arrow(760, y + 20, 778, y + 20)
    drawing.word(782, y + 25, "prediction")


def schedules() -> None:
    """Evaluated steps of four schedules."""
    rows = {
        "paper's, α = 0.75": schedule.adaptive(STEPS),
        "paper's, α = 3": schedule.adaptive(STEPS, slope=3),
        "default, speedup=3.5": schedule.nodes(STEPS, 14),
        "default, speedup=5": schedule.nodes(STEPS, 10),
        "uniform, interval=4": schedule.uniform(STEPS, 4, 1),
    }
    drawing = Drawing(860, 60 + 34 * len(rows), "Evaluated steps of five schedules")
    for number, (name, evaluated) in enumerate(rows.items()):
        y = 16 + 34 * number
        drawing.word(20, y + 15, name)
        drawing.ticks(190, y, evaluated)
        drawing.word(772, y + 15, f"{len(evaluated)} of {STEPS}", colour=GREY)
    for step in (0, 10, 20, 30, 40, 49):
        drawing.word(190 + step * 11.4 + 5, 26 + 34 * len(rows), str(step), colour=GREY, anchor="middle", size=12)
    drawing.word(20, 26 + 34 * len(rows), "step", colour=GREY, size=12)
    drawing.save("schedules.svg")


def sites() -> None:
    """What runs at a skipped step, at each site."""
    rows = {
        "last_block": (True, False, False, True),
        "module": (True, True, False, True),
        "output": (False, False, False, False),
    }
    drawing = Drawing(860, 60 + 96 * len(rows), "What runs at a skipped step, at three sites")
    for number, (site, runs) in enumerate(rows.items()):
        _site(drawing, 20 + 96 * number, site, runs)
    drawing.box(20, 30 + 96 * len(rows), 20, 16)
    drawing.word(48, 43 + 96 * len(rows), "runs at a skipped step", colour=GREY)
    drawing.box(230, 30 + 96 * len(rows), 20, 16, runs=False)
    drawing.word(258, 43 + 96 * len(rows), "skipped", colour=GREY)
    drawing.word(350, 43 + 96 * len(rows), "● forecast", colour=FIT)
    drawing.save("sites.svg")


def _site(drawing: Drawing, y: float, site: str, runs: tuple[bool, bool, bool, bool]) -> None:
    embed, frame, module, tail = runs
    drawing.word(20, y + 42, f'site="{site}"')
    drawing.box(160, y + 15, 100, 44, "embeddings", runs=embed)
    for block in range(3):
        x = 272 + block * 134
        drawing.box(x, y, 126, 74, runs=frame)
        drawing.word(x + 63, y + 16, "norms, gates", colour="white" if frame else GREY, anchor="middle", size=12)
        for part, word in enumerate(("attention", "feed-fwd")):
            _module(drawing, x + 4 + part * 60, y + 26, word, kept=site == "module", runs=module)
    drawing.box(682, y + 15, 124, 44, "norm, projection", runs=tail)
    if site == "last_block":
        drawing.dot(676, y + 37, FIT, 6)
    if site == "output":
        drawing.dot(826, y + 37, FIT, 6)


def _module(drawing: Drawing, x: float, y: float, word: str, *, kept: bool, runs: bool) -> None:
    drawing.box(x, y, 58, 38, runs=runs)
    drawing.word(x + 29, y + 16, word, colour="white" if runs else GREY, anchor="middle", size=11)
    if kept:
        drawing.dot(x + 29, y + 28, FIT, 5)


def recorded(prompt: str = "red apple") -> np.ndarray:
    """The feature after the last block at every step of an untouched generation; (T, F)."""
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    features: list[torch.Tensor] = []
    hook = pipe.transformer.norm_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten()))
    pipe(prompt, generator=torch.Generator().manual_seed(0))
    hook.remove()
    return torch.stack(features).double().numpy()  # (T, F)


def feature(now: int = 31, until: int = 38) -> None:
    """One number of the feature over time, with its forecasts after step `now`."""
    known = [step for step in schedule.adaptive(STEPS) if step <= now]
    grid = range(until + 1)
    fit = np.stack([forecast.chebyshev_weights(tuple(known), step, STEPS) for step in grid])  # (until + 1, K)
    line = np.stack([forecast.taylor_weights(tuple(known), step, 1) for step in grid])  # (until + 1, K)
    values = recorded()
    forecasts = (fit + line) / 2 @ values[known]  # (until + 1, F)
    errors = np.abs(forecasts - values[: until + 1])[now:].mean(axis=0) / values.std(axis=0)  # (F,)
    truth = values[:, np.argsort(errors)[len(errors) * 3 // 4]]  # (T,), harder to forecast than three of four
    _plot(truth, known, fit @ truth[known], line @ truth[known])


def _plot(truth: np.ndarray, known: list[int], fit: np.ndarray, line: np.ndarray) -> None:
    drawing = Drawing(860, 400, "One number of the feature over the steps, its Chebyshev fit and the line")
    now, until = known[-1], len(fit)
    low, high = min(truth.min(), fit.min(), line[now:].min()), max(truth.max(), fit.max(), line[now:].max())

    def place(step: int, value: float) -> tuple[float, float]:
        return 60 + step * 15.4, 330 - (value - low) / (high - low) * 290

    drawing.curve([place(step, value) for step, value in enumerate(truth)], LIGHT, 6)
    drawing.curve([place(step, value) for step, value in enumerate(fit)], FIT, 2)
    drawing.curve([place(step, line[step]) for step in range(now, until)], LINE, 2, "7 4")
    drawing.curve([place(step, (fit[step] + line[step]) / 2) for step in range(now + 1, until)], DARK, 2.5, "2 3")
    for step in known:
        drawing.dot(*place(step, truth[step]), RUN)
    for step in (0, 10, 20, 30, 40, 49):
        drawing.word(place(step, low)[0], 352, str(step), colour=GREY, anchor="middle", size=12)
    drawing.word(20, 352, "step", colour=GREY, size=12)
    _key(drawing)
    drawing.save("feature.svg")


def _key(drawing: Drawing) -> None:
    names = {
        LIGHT: "computed at every step",
        FIT: "Chebyshev ridge fit",
        LINE: "line through the last two",
        DARK: "half of each",
    }
    for number, (colour, name) in enumerate(names.items()):
        drawing.curve([(60 + number * 176, 380), (80 + number * 176, 380)], colour, 4)
        drawing.word(86 + number * 176, 385, name, size=12)
    drawing.dot(752, 380, RUN)
    drawing.word(760, 385, "evaluated", size=12)


def main() -> None:
    torch.set_num_threads(1)
    for draw in (steps, schedules, sites, feature):
        draw()


if __name__ == "__main__":
    main()
