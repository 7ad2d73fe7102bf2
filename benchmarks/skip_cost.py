"""The cost of a skipped step as a share of an evaluated one, by width, number of tokens and number of kept features K.

    python -m benchmarks.skip_cost [--write docs/benchmarks.md]

The model is a FLUX with random weights, 2 double and 4 single blocks. Full-size FLUX.1 has 19 and 38, so its shares are
about ten times smaller. Runs are interleaved, and the ratios of their medians are printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

import spectrum_diffusion
from spectrum_diffusion.core.history import weighted_sum

WIDTHS = (128, 512, 1024)
TOKENS = (64, 256, 1024)
KEPT = (2, 6, 13)
REPEATS = 7

INTRODUCTION = """\
At the site `last_block`, a skipped step still computes embeddings, the final norm and projection, and the forecast;
at `output`, the default's, only the forecast. The tables measure `last_block` on a FLUX with random weights, 2 double
and 4 single blocks. Full-size FLUX.1 has 19 and 38, so its shares are about ten times smaller."""
FLOOR = """\
The floor is the same model without blocks: embeddings, final norm and projection. The last column is a difference of
two small numbers, and varies by a percent or more if the machine does other work."""
WEIGHTED_SUM = """\
The weighted sum alone, width 1024, float32. Its time is proportional to K and to the number of tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", help="a Markdown file to write the tables to")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    table = "\n".join([*by_width(), "", *by_kept(), "", environment()])
    print(table)
    if arguments.write:
        page = f"# What a skipped step costs\n\n{INTRODUCTION}\n\n{table}\n"
        Path(arguments.write).write_text(page, encoding="utf-8")


def by_width() -> list[str]:
    lines = [
        "| width | tokens | evaluated ms | skipped / evaluated | floor / evaluated | beyond the floor |",
        "|---|---|---|---|---|---|",
    ]
    for width in WIDTHS:
        for tokens in TOKENS:
            evaluated, skipped, floor = measure(width, tokens)
            lines.append(
                f"| {width} | {tokens} | {1e3 * evaluated:.1f} | {skipped / evaluated:.2%} | {floor / evaluated:.2%} "
                f"| {(skipped - floor) / evaluated:.2%} |"
            )
    return [*lines, "", FLOOR]


def by_kept() -> list[str]:
    lines = [
        "| features kept K | " + " | ".join(f"{t} tokens, ms" for t in TOKENS) + " |",
        "|---|" + "---|" * len(TOKENS),
    ]
    for kept in KEPT:
        cells = []
        for tokens in TOKENS:
            features = [torch.randn(1, tokens, 1024) for _ in range(kept)]
            cells.append(f"{1e3 * median(lambda f=features: weighted_sum([0.1] * len(f), f)):.3f}")
        lines.append(f"| {kept} | " + " | ".join(cells) + " |")
    return [*lines, "", WEIGHTED_SUM]


def measure(width: int, tokens: int) -> tuple[float, float, float]:
    """Seconds of an evaluated step, a skipped step at K = 13, and the floor; interleaved medians."""
    model, bare = build(width, 2, 4), build(width, 0, 0)
    call = inputs(width, tokens)
    times: dict[str, list[float]] = {"evaluated": [], "skipped": [], "floor": []}
    with torch.inference_mode(), spectrum_diffusion.enable(model, "paper", evaluated=range(13)) as handle:
        for _ in range(REPEATS):
            with handle.run(total_steps=15) as run:
                for step in range(14):
                    run.step(step)
                    spent = seconds(lambda: model(**call))
                times["skipped"].append(spent)
                run.step(14)
            with handle.run(total_steps=15) as run:
                run.step(0)
                times["evaluated"].append(seconds(lambda: model(**call)))
            times["floor"].append(seconds(lambda: bare(**call)))
    evaluated, skipped, floor = (statistics.median(times[name][1:]) for name in ("evaluated", "skipped", "floor"))
    return evaluated, skipped, floor


def build(width: int, double: int, single: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64, num_layers=double, num_single_layers=single, attention_head_dim=64,
        num_attention_heads=width // 64, joint_attention_dim=256, pooled_projection_dim=128,
        guidance_embeds=True, axes_dims_rope=(16, 24, 24),
    ).eval()  # fmt: skip


def inputs(width: int, tokens: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, tokens, 64),
        "encoder_hidden_states": torch.randn(1, 32, 256),
        "pooled_projections": torch.randn(1, 128),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(32, 3),
    }


def seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def median(function: Callable[[], Any]) -> float:
    return statistics.median(seconds(function) for _ in range(50))


def environment() -> str:
    return (
        f"`python -m benchmarks.skip_cost`, {platform.machine()} CPU, 2 threads, float32, PyTorch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
