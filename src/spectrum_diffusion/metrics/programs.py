"""Public path of :mod:`spectrum_diffusion.bench.metrics.programs`."""

import sys

from ..bench.metrics.programs import *  # noqa: F403
from ..bench.metrics.programs.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
