"""Public path of :mod:`spectrum_diffusion.bench.prompts`."""

from .bench.prompts import *  # noqa: F403
