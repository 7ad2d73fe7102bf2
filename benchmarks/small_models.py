"""What the measurements on the small trained models share: the models, how they are loaded, and how images compare."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion.bench.evaluate import Request, Row, evaluate, files, plots
from spectrum_diffusion.bench.evaluate.statistics import difference
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.tune.samples import Pair

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
FIGURES = ROOT / "docs" / "images" / "results"
STEPS = 50
COUNTS = (14, 10)
MODELS = ("tiny-flux", "tiny-sd3", "tiny-sdxl", "tiny-wan", "tiny-hunyuan", "tiny-rough")
VIDEOS = ("tiny-wan", "tiny-hunyuan")

Values = dict[tuple[str, int], float]
"""PSNR by prompt and seed."""
Cell = tuple[float, Values]
"""Mean cost in evaluations, and the values."""


def parser_of(description: str | None, models: Sequence[str] = MODELS) -> argparse.ArgumentParser:
    """A parser with the arguments that measurements share: the models, and the pages to write to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=models, help=f"default: {', '.join(models)}")
    parser.add_argument("--write", type=Path, help="folder of pages whose marked block is replaced")
    return parser


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


def psnr_of(images: Sequence[dict[str, Any]]) -> Values:
    return {(image["prompt"], image["seed"]): image["metrics"]["psnr"] for image in images}


def cell_of(images: Sequence[dict[str, Any]]) -> Cell:
    return mean(image["nfe"] for image in images), psnr_of(images)


def verdict(values: Values, baseline: Values) -> str:
    """+ where the values are better by a paired bootstrap over prompts (95 %), − where they are worse, else ≈."""
    apart = difference(values, baseline)
    if apart.low is None or apart.high is None or apart.low <= 0 <= apart.high:
        return "≈"
    return "+" if apart.low > 0 else "−"


def shown(psnr: Iterable[float]) -> str:
    """A cell: the mean, and after the slash the mean of the worst tenth."""
    values = list(psnr)
    return f"{mean(values):.1f} / {worst_tenth(values):.1f}"


def draw(kind: str, model: str, cells: Mapping[str, Cell]) -> str:
    """Draw a curve for each method, PSNR over evaluations, beside the pages; the line that shows it on one.

    Args:
        kind: what the figure's name begins with.
        model: the small model.
        cells: by "method / count".
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, (cost, values) in cells.items():
        curves.setdefault(name.partition(" / ")[0], []).append((cost, mean(values.values())))
    drawn = [plots.Curve(name, sorted(points), number) for number, (name, points) in enumerate(curves.items())]
    figure = plots.lines(drawn, f"{model}, {STEPS} steps", "evaluations", "PSNR dB ↑", zero=False, lowest_first=False)
    files.write_text(FIGURES / f"{kind}-{model}.svg", plots.standalone(figure))
    return f"![PSNR over evaluations on {model}](../images/results/{kind}-{model}.svg)"


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
