"""How the default was chosen: rules and schedules on all small models, chosen on some prompts, reported on others.

python -m benchmarks.choice [--pairs 8] [--write docs/results]

Every candidate runs at 14 and at 10 of 50 steps. Its score on a model is the mean of the two PSNR. One model after the
other is left out: the candidate with the highest mean score on the others, on half of their prompts, is reported on
the one left out, on prompts and seeds that no choice has seen. What ships was chosen on all. The work is done by
`evaluate`, in build/choice: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch

from spectrum_diffusion.bench.evaluate import Row
from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.core import schedule
from spectrum_diffusion.core.schedule import Noise, distinct
from spectrum_diffusion.handle import enable_method
from spectrum_diffusion.methods.spectrum import Spectrum
from spectrum_diffusion.tune.search import symmetric

from .marks import replace_block
from .small_models import BUILD, COUNTS, MODELS, STEPS, VIDEOS, evaluated, load, psnr_of

FOLDER = BUILD / "choice"
SHIPPED = "output, gain 2"
SITES = ("output", "sampler", "last_block")
GAINS = (0.0, 2.0)
SLOPES = {14: 0.75, 10: 3.0}
"""With which the paper's schedule has so many evaluations."""

Scores = dict[str, dict[str, float]]
"""Model → candidate → score in dB."""


def skewed(count: int, exponent: float) -> tuple[int, ...]:
    """Chebyshev nodes in the step index alone, skewed to the start."""
    places = [(1 - math.cos(math.pi * (j / (count - 1)) ** exponent)) / 2 for j in range(count)]
    return tuple(distinct([(STEPS - 1) * place for place in places], STEPS))


def spaced(count: int, noise: Noise, **constants: float) -> tuple[int, ...]:
    """The default's nodes with other constants."""
    with mock.patch.multiple(schedule, **constants):
        return tuple(schedule.nodes(STEPS, count, noise=noise))


def candidates(count: int, noise: Noise) -> list[Row]:
    """Sites and gains on the default's schedule, and the default's rule on other schedules."""
    rules = [
        Row("spectrum", {"site": site, "gain": gain, "speedup": STEPS / count}, f"{site}, gain {gain:g} / {count}")
        for site in SITES
        for gain in GAINS
    ]
    spacings = {
        "by steps alone": spaced(count, noise, BY_STEPS=1.0, BY_RATIO=0.0),
        "by steps and ratio": spaced(count, noise, BY_STEPS=1.0),
        "by the noise alone": spaced(count, noise, BY_STEPS=0.0),
        "ratio 0.15": spaced(count, noise, BY_RATIO=0.15),
        "ratio 0.25": spaced(count, noise, BY_RATIO=0.25),
        "closer at both ends": spaced(count, noise, EVEN=0.0),
        "symmetric, half even": symmetric(STEPS, count),
        "skewed, exponent 1.5": skewed(count, 1.5),
        "the paper's": tuple(schedule.adaptive(STEPS, slope=SLOPES[count])),
    }
    return rules + [
        Row("spectrum", {"evaluated": steps}, f"{SHIPPED}, {name} / {count}") for name, steps in spacings.items()
    ]


def noise_in(pipe: Any, prompt: str) -> Noise:
    """The noise of the latents that a pipeline samples, by sampling once."""
    noises: list[Noise] = []

    class Noting(Spectrum):
        def paced(self, noise: Noise | None) -> Spectrum:
            assert noise is not None
            noises.append(noise)
            return super().paced(noise)

    with enable_method(pipe, Noting(speedup=5)):
        pipe(prompt, num_inference_steps=STEPS)
    return noises[-1]


def measured(model: str, pairs: int, *, chosen: bool) -> dict[str, float]:
    """The candidates' scores on a model: on the prompts for choosing, or on those for reporting."""
    pipe = load(model)
    count = max(2, pairs // 2) if model in VIDEOS else pairs
    half = spread(load_prompts("tiny", model=model), 2 * count)[0 if chosen else 1 :: 2]
    noise = noise_in(pipe, half[0].text)
    rows = [row for count in COUNTS for row in candidates(count, noise)]
    folder = FOLDER / f"{model}-{'chosen' if chosen else 'reported'}"
    values: dict[str, list[float]] = {}
    for name, images in evaluated(pipe, model, rows, half, [0 if chosen else 1000], folder).items():
        values.setdefault(name.partition(" / ")[0], []).extend(psnr_of(images).values())
    return {name: mean(psnr) for name, psnr in values.items()}


def best(scores: Scores, models: Iterable[str]) -> str:
    """The candidate with the highest mean score on the models."""
    return max(next(iter(scores.values())), key=lambda name: mean(scores[model][name] for model in models))


def report(choosing: Scores, reporting: Scores) -> str:
    """Two tables: what leaving each model out chooses, and every candidate on the prompts for reporting."""
    lines = ["| left out | chosen on the others | its score there | score of what ships | highest of all candidates |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for model in MODELS:
        name = best(choosing, [other for other in MODELS if other != model])
        row = reporting[model]
        lines.append(f"| {model} | {name} | {row[name]:.1f} | {row[SHIPPED]:.1f} | {max(row.values()):.1f} |")
    lines += ["", f"Highest on all: {best(choosing, MODELS)}.", ""]
    lines += [f"| candidate | {' | '.join(MODELS)} | mean |", f"| --- |{' ---: |' * (len(MODELS) + 1)}"]
    order = sorted(reporting[MODELS[0]], key=lambda name: -mean(reporting[model][name] for model in MODELS))
    for name in order:
        values = [reporting[model][name] for model in MODELS]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {mean(values):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="prompts of each half; videos get half as many")
    parser.add_argument("--write", type=Path, help="folder of pages whose marked block is replaced")
    arguments = parser.parse_args()
    choosing: Scores = {}
    reporting: Scores = {}
    for model in MODELS:
        choosing[model] = measured(model, arguments.pairs, chosen=True)
        reporting[model] = measured(model, arguments.pairs, chosen=False)
        print(model, {name: round(value, 1) for name, value in reporting[model].items()}, flush=True)
    text = report(choosing, reporting)
    text += f"\n\n`python -m benchmarks.choice --pairs {arguments.pairs}`; torch {torch.__version__}, CPU, one thread."
    print(text)
    if arguments.write:
        replace_block(arguments.write / "default.md", text, "choice")


if __name__ == "__main__":
    main()
