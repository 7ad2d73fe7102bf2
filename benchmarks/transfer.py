"""What plans are worth under conditions that they were not made for.

python -m benchmarks.transfer [tiny-flux …] [--images 16] [--write docs/results]

Uses the plans that `python -m benchmarks.plans` left in build/plans, on prompts that they were not tuned on, with seeds
of their own. A cell is the mean PSNR to the untouched pipeline under the same conditions: of the default, and of the
plan. Another number of steps is missing, because a plan is refused there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError
from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.core.signatures import call_parameters
from spectrum_diffusion.discovery import denoisers_of
from spectrum_diffusion.tune.samples import Pair

from .marks import command, replace_block
from .plans import FOLDER, PLAN
from .small_models import COUNTS, STEPS, VIDEOS, load, parser_of, pixels, psnr

SEED = 7000
DISTURBANCE = 0.02
"""Size of the noise on a disturbed model's weights, relative to their standard deviation."""

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """What differs from the conditions that a plan was made under.

    Attributes:
        name: for the table.
        call: arguments of the pipeline's call.
        disturbed: whether every weight of the denoiser gets noise, as a stand-in for another checkpoint.
    """

    name: str
    call: Call = field(default_factory=dict)
    disturbed: bool = False


def changes(pipe: Any, model: str) -> list[Change]:
    taken = call_parameters(pipe)
    guidance, side = taken["guidance_scale"].default, taken["height"].default * 3 // 4 // 16 * 16
    smaller = {"num_frames": taken["num_frames"].default - 4} if model in VIDEOS else {"height": side, "width": side}
    shown = " × ".join(map(str, smaller.values())) + (" frames" if model in VIDEOS else " pixels")
    return [
        Change("as tuned"),
        *(Change(f"guidance {scale:g}", {"guidance_scale": scale}) for scale in (guidance / 2, guidance * 1.5)),
        Change(shown, smaller),
        Change(f"weights with {DISTURBANCE:.0%} noise", disturbed=True),
    ]


def measured(model: str, images: int) -> list[str]:
    """Rows of the table, one for each change."""
    plans = {count: FOLDER / model / f"{PLAN}-{count}.json" for count in COUNTS}
    if missing := [str(path) for path in plans.values() if not path.is_file()]:
        raise SystemExit(f"{', '.join(missing)} missing: run `python -m benchmarks.plans {model}` first")
    prompts = spread(load_prompts("tiny", model=model)[0::2], images)
    pairs = [Pair(prompts[i % len(prompts)].text, SEED + i) for i in range(images)]
    rows = []
    for change in changes(load(model), model):
        pipe = load(model)
        if change.disturbed:
            disturb(pipe)
        untouched = sampled(pipe, pairs, change.call)
        cells = [cell(pipe, pairs, change.call, untouched, count, plans[count]) for count in COUNTS]
        rows.append(f"| {model} | {change.name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def disturb(pipe: Any) -> None:
    """Add noise to every weight of the denoisers."""
    generator = torch.Generator("cpu").manual_seed(0)
    for model in denoisers_of(pipe, "output").values():
        for weights in model.parameters():
            if weights.numel() > 1:
                weights += DISTURBANCE * weights.std() * torch.randn(weights.shape, generator=generator)


def sampled(pipe: Any, pairs: list[Pair], call: Call) -> list[np.ndarray]:
    return [pixels(pipe, pair, **call) for pair in pairs]


def cell(pipe: Any, pairs: list[Pair], call: Call, untouched: list[np.ndarray], count: int, plan: Path) -> str:
    """Mean PSNR of the default and of the plan, or that the plan is refused."""

    def score(**options: Any) -> str:
        with spectrum_diffusion.enable(pipe, **options), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plan says that it was made for other conditions
            try:
                results = sampled(pipe, pairs, call)
            except InvalidOptionError:
                return "refused"
        return f"{mean(map(psnr, results, untouched)):.1f}"

    return f"{score(speedup=STEPS / count)} → {score(plan=str(plan))}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=16, help="images of each cell; videos are a quarter")
    arguments = parser.parse_args()
    heads = " | ".join(f"default → plan, {count}" for count in COUNTS)
    lines = [f"| model | condition | {heads} |", f"| --- | --- |{' ---: |' * len(COUNTS)}"]
    for model in arguments.models:
        lines += measured(model, math.ceil(arguments.images / 4) if model in VIDEOS else arguments.images)
    text = (
        "\n".join(lines) + f"\n\n`{command('transfer')}`; mean PSNR in dB; torch {torch.__version__}, CPU, one thread."
    )
    if arguments.write:
        replace_block(arguments.write / "plans.md", text, "transfer")


if __name__ == "__main__":
    main()
