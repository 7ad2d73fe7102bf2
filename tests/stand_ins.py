"""Stand-ins for the environments of ImageReward and VBench: this Python, with made-up packages before its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from spectrum_diffusion.bench.metrics.programs import environment_of


def stand_in(name: str, packages: Mapping[str, str]) -> Path:
    """Make the environment of a program, where ``SPECTRUM_PROGRAMS`` says; ``launches`` there has a line a launch."""
    folder = environment_of(name)
    for file, text in packages.items():
        path = folder / "packages" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    python = folder / "bin/python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {folder / "launches"}\nPYTHONPATH={folder / "packages"} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return folder


def launches(folder: Path) -> list[str]:
    file = folder / "launches"
    return file.read_text().splitlines() if file.is_file() else []
