"""The default beside other methods from 8 to 30 of 50 evaluations, on all small models: mean, worst tenth, intervals.

python -m benchmarks.counts [--pairs 32] [--write docs/results]

Seed 2000 took part in no choice. The worst tenth is the mean of the ⌈n/10⌉ lowest values. The work is done by
`evaluate`, in build/counts: an interrupted run continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from spectrum_diffusion.bench.evaluate import Row
from spectrum_diffusion.bench.prompts import load_prompts, spread

from .marks import command, replace_block
from .small_models import BUILD, MODELS, STEPS, VIDEOS, Cell, cell_of, draw, evaluated, load, shown, verdict

FOLDER = BUILD / "counts"
SEED = 2000
COUNTS = (8, 10, 14, 20, 30)
TAYLORSEER = {8: 11, 10: 8, 14: 5, 20: 3, 30: 2}
FORA = {8: 7, 10: 5, 14: 4, 20: 3, 30: 2}
"""These have uniform schedules: the intervals that come nearest to a number of evaluations."""


def rows(count: int) -> list[Row]:
    speedup = STEPS / count
    return [
        Row("spectrum", {"speedup": speedup}, f"spectrum / {count}"),
        Row("spectrum-blend", {"speedup": speedup}, f"spectrum-blend / {count}"),
        Row("paper", {"speedup": speedup}, f"paper / {count}"),
        Row("taylorseer", {"interval": TAYLORSEER[count]}, f"taylorseer / {count}"),
        Row("fora", {"interval": FORA[count]}, f"fora / {count}"),
        Row("fewer-steps", {"speedup": speedup}, f"fewer-steps / {count}"),
    ]


def measured(model: str, pairs: int) -> dict[str, Cell]:
    """Row → mean cost in evaluations, and the values."""
    pipe = load(model)
    prompts = spread(load_prompts("tiny", model=model), pairs)
    all_rows = [row for count in COUNTS for row in rows(count)]
    images = evaluated(pipe, model, all_rows, prompts, [SEED], FOLDER / model)
    return {name: cell_of(of_row) for name, of_row in images.items()}


def table(model: str, cells: Mapping[str, Cell]) -> str:
    """A row for each method, a column for each count: evaluations, mean, worst tenth, and whether ours is ahead."""
    names = list(dict.fromkeys(name.partition(" / ")[0] for name in cells))
    lines = [f"| {model} | {' | '.join(f'about {count}' for count in COUNTS)} |"]
    lines.append(f"| --- |{' --- |' * len(COUNTS)}")
    for name in names:
        row = [_cell(cells, name, count) for count in COUNTS]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(cells: Mapping[str, Cell], name: str, count: int) -> str:
    if f"{name} / {count}" not in cells:
        return "–"
    cost, values = cells[f"{name} / {count}"]
    text = f"{shown(values.values())} ({cost:.3g})"
    if name == "spectrum":
        return text
    return f"{text} {verdict(values, cells[f'spectrum / {count}'][1])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="small models, separated by commas")
    parser.add_argument("--pairs", type=int, default=32, help="prompts of each model; videos get a quarter")
    parser.add_argument("--write", type=Path, help="folder of pages whose marked block is replaced")
    arguments = parser.parse_args()
    tables = []
    for model in arguments.models.split(","):
        cells = measured(model, arguments.pairs // 4 if model in VIDEOS else arguments.pairs)
        tables.append(table(model, cells))
        print(tables[-1], flush=True)
        if arguments.write:
            tables.append(draw("counts", model, cells))
    text = "\n\n".join(tables)
    text += (
        f"\n\n`{command('counts')}`; torch {torch.__version__}, CPU, one thread. A cell: PSNR in dB, mean / worst "
        "tenth (evaluations). Against spectrum, paired by prompt (95 % bootstrap): + better, − worse, ≈ no "
        "difference seen."
    )
    if arguments.write:
        replace_block(arguments.write / "counts.md", text, "counts")


if __name__ == "__main__":
    main()
