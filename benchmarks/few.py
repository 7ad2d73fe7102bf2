"""The default beside fewer steps of the sampler where few evaluations are left, in short and in long runs.

python -m benchmarks.few [tiny-flux …] [--images 8] [--write docs/results]

The default runs T steps and evaluates K of them; the sampler alone runs K steps. Both are compared with the untouched
run of T steps. Seeds from 4000 took part in no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError
from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.tune.samples import Pair

from .marks import command, replace_block
from .small_models import MODELS, VIDEOS, load, parser_of, pixels, psnr

SEED = 4000
TOTALS = (12, 20, 50)
COUNTS = (4, 5, 6, 7, 8, 10)
IMAGES = tuple(model for model in MODELS if model not in VIDEOS)


def measured(model: str, images: int) -> list[str]:
    """A row of the table for each T: mean PSNR of the default / of fewer steps, for each K."""
    pipe = load(model)
    prompts = spread(load_prompts("tiny", model=model), images)
    pairs = [Pair(prompt.text, SEED + number) for number, prompt in enumerate(prompts)]

    def sampled(steps: int) -> list[np.ndarray]:
        return [pixels(pipe, pair, num_inference_steps=steps) for pair in pairs]

    alone = {steps: sampled(steps) for steps in (*COUNTS, *TOTALS)}  # untouched runs
    rows = []
    for total in TOTALS:
        cells = []
        for count in COUNTS:
            with spectrum_diffusion.enable(pipe, speedup=total / count):
                try:
                    ours = score(sampled(total), alone[total])
                except InvalidOptionError:  # more than a third of the run would be forecast at once
                    ours = "–"
            cells.append(f"{ours} / {score(alone[count], alone[total])}")
        rows.append(f"| {model}, {total} steps | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def score(images: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> str:
    """Mean PSNR in dB."""
    return f"{mean(psnr(image, wanted) for image, wanted in zip(images, references, strict=True)):.1f}"


def main() -> None:
    parser = parser_of(__doc__, IMAGES)
    parser.add_argument("--images", type=int, default=8, help="images of each model")
    arguments = parser.parse_args()
    lines = [f"| default / fewer steps, dB | {' | '.join(f'{count} evaluations' for count in COUNTS)} |"]
    lines.append(f"| --- |{' ---: |' * len(COUNTS)}")
    for model in arguments.models:
        lines += measured(model, arguments.images)
    text = "\n".join(lines) + f"\n\n`{command('few')}`; mean PSNR; torch {torch.__version__}, CPU, one thread."
    if arguments.write:
        replace_block(arguments.write / "counts.md", text, "few")


if __name__ == "__main__":
    main()
