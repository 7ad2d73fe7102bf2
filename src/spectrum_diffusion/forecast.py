"""Public path of :mod:`spectrum_diffusion.core.forecast`."""

from .core.forecast import *  # noqa: F403
