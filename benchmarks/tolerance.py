"""`tolerance=` beside other methods that decide while they run, and beside the fixed schedule, at equal mean NFE.

python -m benchmarks.tolerance [--models tiny-flux,…] [--pairs 8] [--write docs/results]

Every threshold is found on some prompts so that the mean number of evaluations is about 14, and about 10; what is
reported are other prompts, with other seeds. The work is kept in build/tolerance: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import spectrum_diffusion
from spectrum_diffusion import SpectrumError
from spectrum_diffusion.bench.evaluate import Row
from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.tune import tune

from .marks import replace_block
from .small_models import BUILD, COUNTS, STEPS, evaluated, load, psnr_of, shown

FOLDER = BUILD / "tolerance"
MODELS = ("tiny-flux", "tiny-sd3", "tiny-sdxl", "tiny-rough")
SEEDS = (0, 1000)
"""For finding thresholds, and for reporting."""
SEARCHED = 2
"""Prompts on which a threshold is found."""
ROUNDS, CLOSE = 9, 0.2
"""Bisections at most, and the distance to the wanted mean NFE that ends them earlier."""
FIXED = "fixed schedule"

Measured = dict[str, list[dict[str, Any]]]
"""Label of a row → what was measured of each image."""


@dataclass(frozen=True)
class Competitor:
    """A method whose number of evaluations follows from one option, which is searched between two numbers."""

    method: str
    option: str = "threshold"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[float, float] = (1e-3, 10.0)


COMPETITORS = {
    "tolerance": Competitor("spectrum", "tolerance"),
    "TeaCache": Competitor("teacache"),
    "EasyCache": Competitor("easycache", fixed={"warmup": 3}),
    "first-block cache": Competitor("first-block-cache"),
}


def searched(pipe: Any, model: str, name: str, texts: Sequence[str]) -> dict[int, dict[str, Any]]:
    """For each count the options that bring a method to it, kept in a file; none where the model is not supported."""
    path = FOLDER / f"{model}-{name.replace(' ', '-')}.json"
    if path.exists():
        return {int(count): options for count, options in json.loads(path.read_text()).items()}
    competitor = COMPETITORS[name]
    try:
        fixed = {**competitor.fixed, **_fitted(pipe, competitor.method, texts)}
        options = {count: _bisected(pipe, competitor, fixed, texts, count) for count in COUNTS}
    except SpectrumError as error:
        print(f"{model}: {name}: {error}", flush=True)
        options = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(options))
    return options


def _fitted(pipe: Any, method: str, texts: Sequence[str]) -> dict[str, Any]:
    if method != "teacache":
        return {}
    (plan,) = tune(pipe, method, texts, nfe=COUNTS[0])
    return {"coefficients": plan.options["coefficients"]}


def _bisected(pipe: Any, competitor: Competitor, fixed: dict[str, Any], texts: Sequence[str], count: int) -> dict:
    low, high = competitor.span
    tried: dict[float, float] = {}
    for _ in range(ROUNDS):
        middle = float(f"{math.sqrt(low * high):.4g}")
        tried[middle] = _evaluations(pipe, competitor.method, {**fixed, competitor.option: middle}, texts)
        if abs(tried[middle] - count) <= CLOSE:
            break
        low, high = (middle, high) if tried[middle] > count else (low, middle)
    return {**fixed, competitor.option: min(tried, key=lambda value: abs(tried[value] - count))}


def _evaluations(pipe: Any, method: str, options: dict[str, Any], texts: Sequence[str]) -> float:
    """The mean NFE over the prompts."""
    counts = []
    with spectrum_diffusion.enable(pipe, method, **options) as handle:
        for text in texts:
            pipe(text, generator=torch.Generator().manual_seed(SEEDS[0]), output_type="latent")
            counts.append(handle.summary().nfe)
    return mean(counts)


def measured(model: str, pairs: int) -> Measured:
    """Every method on the prompts for reporting."""
    pipe = load(model)
    halves = spread(load_prompts("tiny", model=model), 2 * pairs)
    texts = [prompt.text for prompt in spread(halves[0::2], SEARCHED)]
    rows = [Row("spectrum", {"speedup": STEPS / count}, f"{FIXED} / {count}") for count in COUNTS]
    for name in COMPETITORS:
        for count, options in searched(pipe, model, name, texts).items():
            rows.append(Row(COMPETITORS[name].method, options, f"{name} / {count}"))
    return evaluated(pipe, model, rows, halves[1::2], [SEEDS[1]], FOLDER / model)


def report(results: dict[str, Measured]) -> str:
    """For each count a table: mean PSNR / mean of the worst tenth, and the mean NFE."""
    lines: list[str] = []
    for count in COUNTS:
        lines += ["", f"| about {count} evaluations | {' | '.join(results)} |", f"| --- |{' ---: |' * len(results)}"]
        for name in (FIXED, *COMPETITORS):
            cells = [_cell(values.get(f"{name} / {count}")) for values in results.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def _cell(images: list[dict[str, Any]] | None) -> str:
    if not images:
        return "–"
    counts = [image["nfe"] for image in images]
    return f"{shown(psnr_of(images).values())} ({mean(counts):.1f}: {min(counts)}–{max(counts)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names of small models")
    parser.add_argument("--pairs", type=int, default=8, help="prompts of each half")
    parser.add_argument("--write", type=Path, help="folder of pages whose marked block is replaced")
    arguments = parser.parse_args()
    results = {}
    for model in arguments.models.split(","):
        results[model] = measured(model, arguments.pairs)
        print(report(results), flush=True)
    text = report(results)
    text += (
        f"\n\n`python -m benchmarks.tolerance --models {arguments.models} --pairs {arguments.pairs}`; "
        f"{arguments.pairs} images a cell; torch {torch.__version__}, CPU, one thread."
    )
    if arguments.write:
        replace_block(arguments.write / "tolerance.md", text, "tolerance")


if __name__ == "__main__":
    main()
