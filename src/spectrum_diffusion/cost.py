"""Public path of :mod:`spectrum_diffusion.bench.cost`."""

from .bench.cost import *  # noqa: F403
