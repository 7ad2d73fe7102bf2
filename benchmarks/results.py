"""Put what `spectrum reproduce all -o FOLDER` wrote into docs/results.md with its figures, its start into README.md.

python -m benchmarks.results FOLDER
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from PIL import Image

from .marks import replace_block

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "images" / "results"
SHOWN = (
    "fewer steps",
    "FORA",
    "TaylorSeer order 1",
    "TeaCache",
    "Spectrum, the paper's",
    "spectrum",
    "spectrum, warm-up 2",
)
"""Rows of the first tables that the README has room for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    page = (folder / "results.md").read_text(encoding="utf-8").split("\n", 2)[2]  # the docs' page has its own title
    for name in re.findall(r"\]\(([\w-]+\.png)\)", page):
        FIGURES.mkdir(parents=True, exist_ok=True)
        Image.open(folder / name).convert("RGB").quantize(256).save(FIGURES / name, optimize=True)
    page = re.sub(r"\]\(([\w-]+\.png)\)", r"](images/results/\1)", page)
    replace_block(ROOT / "docs" / "results.md", page.strip(), "run")
    replace_block(ROOT / "README.md", overview(page), "results")


def overview(page: str) -> str:
    """The rows of "every method on every model" that are shown, line by line as they are there."""
    part = page.split("## Every method on every model")[1].split("\n## ")[0]
    tables = [block.splitlines() for block in part.split("\n\n") if block.startswith("| about")]
    kept = [[*lines[:2], *(line for line in lines[2:] if line.split(" | ")[0][2:] in SHOWN)] for lines in tables]
    return "\n\n".join("\n".join(lines) for lines in kept)


if __name__ == "__main__":
    main()
