"""How far each method's pictures are from the 50-step ones, on the model that ships: real re-sampling, in PSNR.

python -m benchmarks.forecastability [--pairs 24] [--write README.md docs/methods.md]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion.metrics import METRICS

PROMPTS = Path(__file__).parents[1] / "training" / "contact_sheet_prompts.txt"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "fewer steps": ("fewer-steps", {}),
    "reuse": ("reuse", {}),
    "Taylor 1": ("taylor", {"order": 1}),
    "Taylor 2": ("taylor", {"order": 2}),
    "paper (Chebyshev M 4, λ 0.1)": ("paper", {}),
    "spectrum (½ Chebyshev + ½ line)": ("spectrum", {}),
    "spectrum, warm-up 2": ("spectrum", {"warmup": 2}),
}
SLOPES = {14: 0.75, 10: 3.0}
SHORT_WARMUP_SLOPES = {14: 0.41, 10: 1.14}
SITES = ("last_block", "output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=24, help="prompt and seed pairs")
    parser.add_argument("--write", nargs="*", default=[], help="Markdown files whose marked block is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    table = markdown(measure(arguments.pairs), arguments.pairs)
    print(table)
    for name in arguments.write:
        replace_block(Path(name), table, "psnr")


def measure(pairs: int) -> dict[tuple[str, str, int], np.ndarray]:
    """PSNR in dB by (row, site, NFE), one value a pair."""
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompts = PROMPTS.read_text(encoding="utf-8").split("\n")
    cases = [(prompt, seed) for seed, prompt in enumerate(p for p in prompts[:: max(1, 60 // pairs)] if p)][:pairs]
    references = [draw(pipe, *case) for case in cases]
    found = {}
    for row, (method, options) in ROWS.items():
        for site in SITES if method != "fewer-steps" else SITES[:1]:
            slopes = SHORT_WARMUP_SLOPES if "warmup" in options else SLOPES
            for nfe, slope in slopes.items():
                with spectrum_diffusion.enable(pipe, method, site=site, slope=slope, **options) as handle:
                    pictures = [draw(pipe, *case) for case in cases]
                    assert handle.summary().nfe == nfe
                found[row, site, nfe] = np.array([psnr(a, b) for a, b in zip(pictures, references, strict=True)])
    return found


def draw(pipe: Any, prompt: str, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="np").images[0]


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """In dB, of float pictures in [0, 1]; of equal ones 100, so that they count in a mean."""
    return min(METRICS["psnr"].compare(picture, reference), 100.0)


def markdown(found: dict[tuple[str, str, int], np.ndarray], pairs: int) -> str:
    lines = [
        "| method | " + " | ".join(f"{site.replace('_', ' ')}, {nfe} of 50" for site in SITES for nfe in SLOPES) + " |",
        "|---|" + "---|" * (len(SITES) * len(SLOPES)),
    ]
    for row in ROWS:
        cells = [found.get((row, site, nfe)) for site in SITES for nfe in SLOPES]
        lines.append(
            f"| {row} | " + " | ".join("–" if c is None else f"{c.mean():.1f} ± {c.std():.1f}" for c in cells) + " |"
        )
    lines.append("")
    lines.append(
        f"Mean PSNR in dB to the 50-step pictures ± standard deviation over {pairs} prompt and seed pairs; "
        f"`python -m benchmarks.forecastability --pairs {pairs}`, {platform.machine()} CPU, float32, "
        f"PyTorch {torch.__version__}, "
        f"diffusers {diffusers.__version__}."
    )
    return "\n".join(lines)


def replace_block(path: Path, table: str, block: str) -> None:
    """Put the table between the file's marks of that name."""
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
