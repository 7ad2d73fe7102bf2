"""Whether other methods than the default still give the images of an earlier commit, bit for bit.

python -m benchmarks.unchanged COMMIT [--renamed spectrum-blend=spectrum]

Each method samples with the model that ships, under the code of both. Exits with 1 if an image differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .small_models import ROOT

STEPS = 16
CASES = (
    ("paper", {}),
    ("paper", {"site": "module"}),
    ("spectrum-blend", {}),
    ("spectrum-blend", {"speedup": 2, "site": "output"}),
    ("taylor", {"order": 2, "speedup": 2}),
    ("reuse", {}),
    ("fewer-steps", {"speedup": 2}),
    ("fora", {}),
    ("taylorseer", {"interval": 3}),
    ("hicache", {}),
    ("toca", {}),
    ("teacache", {"threshold": 0.1}),
    ("first-block-cache", {"threshold": 0.1}),
    ("easycache", {"threshold": 0.1}),
    ("magcache", {"threshold": 0.1}),
)
PROGRAM = f"""
import hashlib, json, sys, warnings
import torch
import spectrum_diffusion
warnings.simplefilter("ignore")
torch.set_num_threads(1)
pipe = spectrum_diffusion.load_default_pipeline()
pipe.set_progress_bar_config(disable=True)
for method, options in json.loads(sys.argv[1]):
    with spectrum_diffusion.enable(pipe, method, **options):
        generator = torch.Generator().manual_seed(0)
        latents = pipe("red apple", num_inference_steps={STEPS}, output_type="latent", generator=generator)[0]
    print(json.dumps(hashlib.sha256(latents.numpy().tobytes()).hexdigest()))
"""


def digests(source: Path, cases: list[tuple[str, dict]]) -> list[str]:
    """The digest of each image under the package in a folder."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    lines = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--renamed", action="append", default=[], help="NAME=NAME THEN, of a method")
    arguments = parser.parse_args()
    then = dict(renamed.split("=") for renamed in arguments.renamed)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", arguments.commit, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        before = digests(Path(folder) / "src", [(then.get(name, name), options) for name, options in CASES])
    after = digests(ROOT / "src", list(CASES))
    for (name, options), old, new in zip(CASES, before, after, strict=True):
        print("same   " if old == new else "CHANGED", name, options or "", flush=True)
    sys.exit(before != after)


if __name__ == "__main__":
    main()
