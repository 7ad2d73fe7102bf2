"""VBench's dimensions of the videos of a manifest. Run by the Python of its own environment, not imported.

    python run_vbench.py MANIFEST OUTPUT DEVICE DIMENSION…

A video is judged in the dimensions of its "category", as VBench's own list of prompts has them, or in all if that is
empty. VBench's `evaluate` wants five videos a prompt, named by it: the list it makes of them is made here instead.
"""

import importlib
import json
import sys
from pathlib import Path


def main(manifest: Path, output: Path, device: str, dimensions: list[str]) -> None:
    from vbench.utils import init_submodules

    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    listing = output.with_name(output.stem + "-videos.json")
    listing.write_text(json.dumps([_video(entry, manifest.parent, dimensions) for entry in entries]), encoding="utf-8")
    models = init_submodules(dimensions)
    results = {}
    for dimension in dimensions:
        compute = getattr(importlib.import_module(f"vbench.{dimension}"), f"compute_{dimension}")
        score, videos = compute(str(listing), device, models[dimension])
        results[dimension] = [float(score), videos]
    output.write_text(json.dumps(results, default=float), encoding="utf-8")


def _video(entry: dict[str, str], folder: Path, dimensions: list[str]) -> dict[str, object]:
    named = [name for name in entry.get("category", "").split(",") if name]
    return {
        "prompt_en": entry["prompt"],
        "dimension": named or dimensions,
        "video_list": [str(folder / entry["file"])],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
