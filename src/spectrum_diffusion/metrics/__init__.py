"""Public path of :mod:`spectrum_diffusion.bench.metrics`."""

from ..bench.metrics import *  # noqa: F403
