"""Plans of `spectrum tune` beside the default and calibrated methods of others, on prompts and seeds of their own.

python -m benchmarks.plans [tiny-flux …] [--counts 14,10] [--pairs 32] [--runs 100] [--strategies all]
                           [--write docs/results]

Half of a model's prompts are tuned on, with seeds from 0; the others are measured, with seeds from 5000. A cell is the
mean PSNR to the untouched pipeline's results, after the slash the mean of the lowest tenth, and whether it is better
(+) or worse (−) than the default by a paired bootstrap over prompts. Of more than two counts, curves are drawn. The
work is kept in build/plans: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectrum_diffusion.bench.evaluate import Row
from spectrum_diffusion.bench.prompts import Prompt, load_prompts, spread
from spectrum_diffusion.tune import tune
from spectrum_diffusion.tune.strategies import STRATEGIES

from .marks import command, replace_block
from .small_models import (
    BUILD,
    COUNTS,
    STEPS,
    VIDEOS,
    Cell,
    cell_of,
    draw,
    evaluated,
    load,
    parser_of,
    shown,
    verdict,
)

FOLDER = BUILD / "plans"
FIRST_SEED = 5000
PLAN = "spectrum"

Cells = dict[str, Cell]


def tuned(
    pipe: Any, prompts: Sequence[Prompt], counts: Sequence[int], strategy: str, folder: Path, effort: dict[str, int]
) -> list[Row]:
    """The plan of a strategy for each number of evaluations, as rows."""
    plans = tune(
        pipe,
        [prompt.text for prompt in prompts],
        nfe=counts,
        strategy=strategy,
        folder=folder / "tune",
        on_run=lambda done: print(f"{folder.name} {strategy}: {done}", flush=True),
        **effort,
    )
    rows = []
    for plan in plans:
        path = folder / f"{strategy}-{plan.record['nfe']}.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        rows.append(Row(plan.method, {}, f"{strategy} plan / {plan.record['nfe']}", str(path)))
    return rows


def measured(model: str, counts: Sequence[int], pairs: int, strategies: Sequence[str], effort: dict[str, int]) -> Cells:
    """The rows of a model, on prompts that were not tuned on."""
    pipe = load(model)
    folder = FOLDER / model
    folder.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts("tiny", model=model)
    to_tune, to_measure = halves(prompts)
    rows = [Row(PLAN, {"speedup": STEPS / count}, f"default / {count}") for count in counts]
    for strategy in strategies:
        rows += tuned(pipe, to_tune, counts, strategy, folder, effort)
    count = videos(pairs) if model in VIDEOS else pairs
    held_out = spread(to_measure, count)
    seeds = [FIRST_SEED + i for i in range(math.ceil(count / len(held_out)))]
    images = evaluated(pipe, model, rows, held_out, seeds, folder / "evaluate")
    return {name: cell_of(of_row) for name, of_row in images.items()}


def halves(prompts: Sequence[Prompt]) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """The prompts to tune on, and those to measure."""
    return prompts[1::2], prompts[0::2]


def videos(pairs: int) -> int:
    """How many videos are measured where so many images are."""
    return max(2, pairs // 4)


def report(cells: dict[str, Cells]) -> str:
    lines = [f"| row / evaluations | {' | '.join(cells)} |", f"| --- |{' ---: |' * len(cells)}"]
    names = list(dict.fromkeys(name for rows in cells.values() for name in rows))
    lines += [f"| {name} | {' | '.join(_cell(rows, name) for rows in cells.values())} |" for name in names]
    return "\n".join(lines)


def _cell(rows: Cells, name: str) -> str:
    if name not in rows:
        return "–"
    values, (_, default) = rows[name][1], rows[f"default / {name.rpartition(' / ')[2]}"]
    text = shown(values.values())
    return text if values is default else f"{text} {verdict(values, default)}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="evaluations of 50 steps")
    parser.add_argument("--pairs", type=int, default=32, help="images to measure; videos are a quarter")
    parser.add_argument("--runs", type=int, default=100, help="schedules that each search tries")
    parser.add_argument("--fitted", type=int, default=24, help="pairs to fit to")
    parser.add_argument("--held-out", type=int, default=16, help="pairs to validate on")
    parser.add_argument(
        "--strategies", default="", help=f"also calibrated methods of others: all, or some of {','.join(STRATEGIES)}"
    )
    arguments = parser.parse_args()
    others = STRATEGIES if arguments.strategies == "all" else filter(None, arguments.strategies.split(","))
    strategies = (PLAN, *others)
    effort = {"runs": arguments.runs, "pairs": arguments.fitted, "held_out": arguments.held_out}
    counts = [int(count) for count in arguments.counts.split(",")]
    cells = {model: measured(model, counts, arguments.pairs, strategies, effort) for model in arguments.models}
    text = f"{report(cells)}\n\n{described(arguments)}"
    print(text)
    if arguments.write:
        if len(counts) > 2:
            text += "\n\n" + "\n".join(draw("plans", model, rows) for model, rows in cells.items())
        replace_block(arguments.write / "plans.md", text, "rivals" if arguments.strategies else "plans")


def described(arguments: argparse.Namespace) -> str:
    """How the numbers came about."""
    return (
        f"`{command('plans')}`; {arguments.fitted} pairs to fit, {arguments.held_out} to "
        f"validate, {arguments.runs} schedules tried; {arguments.pairs} pairs measured, of videos "
        f"{videos(arguments.pairs)}; torch {torch.__version__}, CPU, one thread. Against the default, paired by prompt "
        "(95 % bootstrap): + better, − worse, ≈ no difference seen."
    )


if __name__ == "__main__":
    main()
