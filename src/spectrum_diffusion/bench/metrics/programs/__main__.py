"""Create the environment of a program: ``python -m spectrum_diffusion.metrics.programs image_reward``."""

from __future__ import annotations

import argparse
import sys

from ....errors import SpectrumError
from . import PROGRAMS, PYTHONS, install


def main() -> int:
    """Install, and print the folder; 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m spectrum_diffusion.metrics.programs", description=__doc__)
    parser.add_argument("program", choices=sorted({program.environment for program in PROGRAMS.values()}))
    parser.add_argument("--python", default="python3.11", help=f"an interpreter of Python {' or '.join(PYTHONS)}")
    asked = parser.parse_args()
    try:
        sys.stderr.write(f"installing {asked.program}: this takes minutes and some GB\n")
        sys.stdout.write(f"{install(asked.program, asked.python)}\n")
    except SpectrumError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
