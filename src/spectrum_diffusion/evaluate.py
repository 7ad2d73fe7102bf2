"""Public path of :mod:`spectrum_diffusion.bench.evaluate`."""

from .bench.evaluate import *  # noqa: F403
