"""Caches of other packages, run as they are and watched."""

from ..methods import METHODS
from .caches import EXTERNAL_CACHES, ExternalCache

METHODS.update(EXTERNAL_CACHES)

__all__ = ["EXTERNAL_CACHES", "ExternalCache"]
