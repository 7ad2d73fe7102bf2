"""Public path of :mod:`spectrum_diffusion.core.schedule`."""

from .core.schedule import *  # noqa: F403
