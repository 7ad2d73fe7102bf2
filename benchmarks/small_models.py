"""What the measurements on the small trained models share: the models, how they are loaded, and how images compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion.bench.evaluate import Request, Row, evaluate
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.tune.pairs import Pair

BUILD = Path(__file__).parents[1] / "build"
STEPS = 50
COUNTS = (14, 10)
MODELS = ("tiny-flux", "tiny-sd3", "tiny-sdxl", "tiny-wan", "tiny-hunyuan", "tiny-rough")
VIDEOS = ("tiny-wan", "tiny-hunyuan")


def load(model: str) -> Any:
    """A small model's pipeline in float32, on one thread, without progress bars."""
    torch.set_num_threads(1)
    pipe = spectrum_diffusion.load_pipeline(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def evaluated(
    pipe: Any, model: str, rows: Sequence[Row], prompts: Sequence[Prompt], seeds: Sequence[int], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """What `evaluate` measured for each row, an entry for each image. The work is kept in the folder."""
    request = Request(
        model=model, rows=tuple(rows), prompts=tuple(prompts), seeds=tuple(seeds), metrics=("psnr",), flops=False
    )
    images: dict[str, list[dict[str, Any]]] = {row.label: [] for row in rows}
    for unit in evaluate(pipe, request, folder).units:
        if unit["row"] != "reference":
            images[unit["row"]].append(unit)
    return images


def psnr_of(images: Sequence[dict[str, Any]]) -> list[float]:
    return [image["metrics"]["psnr"] for image in images]


def shown(psnr: Sequence[float]) -> str:
    """A cell: the mean, and after the stroke the mean of the worst tenth."""
    return f"{mean(psnr):.1f} / {worst_tenth(psnr):.1f}"


def worst_tenth(values: Sequence[float]) -> float:
    """The mean of the ⌈n/10⌉ lowest."""
    return mean(sorted(values)[: math.ceil(len(values) / 10)])


def pixels(pipe: Any, pair: Pair, **call: Any) -> np.ndarray:
    """The image or video of a pair, in 0 … 255."""
    generator = torch.Generator("cpu").manual_seed(pair.seed)
    result = pipe(pair.prompt, generator=generator, output_type="np", **{"num_inference_steps": STEPS, **call})
    values = result.frames if hasattr(result, "frames") else result.images
    return np.round(np.asarray(values[0], dtype=np.float64) * 255)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((image - reference) ** 2), 1e-6)))
