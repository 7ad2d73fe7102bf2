"""Metrics that need their own environment: ImageReward and VBench, run over a folder of files.

Their packages need versions of transformers and NumPy that no longer work with diffusers. Each is therefore installed
into a virtual environment with pinned versions, and runs as another program:

    python -m spectrum_diffusion.metrics.programs image_reward --python python3.11

    write_manifest(folder, [Entry("0.png", "red apple")])
    PROGRAMS["image_reward"].run(folder)
"""

from __future__ import annotations

from .environment import PYTHONS, environment_of, install
from .manifest import MANIFEST, Entry, read_manifest, write_manifest
from .program import PROGRAMS, Program, ProgramResult, parse_image_reward, parse_vbench
from .quality import QUALITY, vbench_quality

__all__ = [
    "MANIFEST",
    "PROGRAMS",
    "PYTHONS",
    "QUALITY",
    "Entry",
    "Program",
    "ProgramResult",
    "environment_of",
    "install",
    "parse_image_reward",
    "parse_vbench",
    "read_manifest",
    "vbench_quality",
    "write_manifest",
]
