"""Caches of other packages as methods: the library installs and removes them, and observes how much they skip.

A new cache is one class in the file of its package and one line here.
"""

from ..methods import METHODS
from .external_cache import ExternalCache

EXTERNAL_CACHES = {
    "diffusers:fbc": "diffusers_caches:FirstBlockCache",
    "diffusers:magcache": "diffusers_caches:MagCache",
    "diffusers:taylorseer": "diffusers_caches:TaylorSeerCache",
    "diffusers:fastercache": "diffusers_caches:FasterCache",
    "diffusers:pab": "diffusers_caches:PyramidAttentionBroadcast",
    "diffusers:seacache": "diffusers_caches:SeaCache",
    "diffusers:text-kv": "diffusers_caches:TextKVCache",
    "cache-dit:dbcache": "cache_dit_caches:DBCache",
    "cache-dit:taylorseer": "cache_dit_caches:TaylorSeerCalibrator",
    "cache-dit:dmd": "cache_dit_caches:DMDCalibrator",
    "cache-dit:foca": "cache_dit_caches:FoCaCalibrator",
    "cache-dit:dbprune": "cache_dit_caches:DBPrune",
}
"""Name of the method → file and class, whether or not the package is installed. Classes are imported on first use."""

METHODS.add(EXTERNAL_CACHES, package=__name__)

__all__ = ["EXTERNAL_CACHES", "ExternalCache"]
