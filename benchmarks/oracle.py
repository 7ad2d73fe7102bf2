"""How much any weights could still gain: weights fitted to the very image that they are used for.

python -m benchmarks.oracle [--images 16] [--write docs/results]

The schedule is the default's. Nobody can have these weights, since they need the untouched image: they bound what
better weights could reach on that schedule.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.handle import enable_method
from spectrum_diffusion.methods import make_method
from spectrum_diffusion.tune.driven import Driven, Session
from spectrum_diffusion.tune.fit import fit
from spectrum_diffusion.tune.pairs import Pair
from spectrum_diffusion.tune.reference import record

from .choice import COUNTS, MODELS, STEPS, VIDEOS
from .counts import worst_tenth
from .marks import replace_block

SEED = 3000
RIDGE = 1e-4
CALL = {"num_inference_steps": STEPS}


def scores(pipe: Any, pair: Pair, count: int) -> tuple[float, float]:
    """PSNR in dB of the default, and of weights fitted to this image, on the default's schedule."""
    reference = pixels(pipe, pair)
    with enable_method(pipe, make_method("spectrum", speedup=STEPS / count)) as handle:
        default = pixels(pipe, pair)
        schedule = list(handle.summary().evaluated)
    with enable_method(pipe, Driven()) as handle:
        session = Session(pipe, handle, CALL)
        rows = fit(session, schedule, [record(session, [pair])], RIDGE).rows
    with enable_method(pipe, make_method("spectrum", site="sampler", evaluated=schedule, step_weights=rows)):
        fitted = pixels(pipe, pair)
    return psnr(default, reference), psnr(fitted, reference)


def pixels(pipe: Any, pair: Pair) -> np.ndarray:
    """The image of a pair, in 0 … 255."""
    generator = torch.Generator("cpu").manual_seed(pair.seed)
    result = pipe(pair.prompt, generator=generator, output_type="np", **CALL)
    values = result.frames if hasattr(result, "frames") else result.images
    return np.round(np.asarray(values[0], dtype=np.float64) * 255)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((image - reference) ** 2), 1e-6)))


def measured(model: str, images: int) -> str:
    """A row of the table."""
    pipe = spectrum_diffusion.load_pipeline(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = spread(load_prompts("tiny", model=model), images)
    pairs = [Pair(prompt.text, SEED + number) for number, prompt in enumerate(prompts)]
    cells = []
    for count in COUNTS:
        for values in zip(*(scores(pipe, pair, count) for pair in pairs), strict=True):
            cells.append(f"{mean(values):.1f} / {worst_tenth(list(values)):.1f}")
    return f"| {model} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="images of each model; videos get half as many")
    parser.add_argument("--write", type=Path, help="folder of pages whose marked block is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    heads = [f"{name}, {count}" for count in COUNTS for name in ("default", "oracle")]
    lines = [f"| mean / worst tenth, dB | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for model in MODELS:
        lines.append(measured(model, arguments.images // 2 if model in VIDEOS else arguments.images))
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    text += (
        f"\n\n`python -m benchmarks.oracle --images {arguments.images}`; torch {torch.__version__}, CPU, one thread; λ "
        f"= {RIDGE:g}."
    )
    if arguments.write:
        replace_block(arguments.write / "oracle.md", text, "oracle")


if __name__ == "__main__":
    main()
