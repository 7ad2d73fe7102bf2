"""The caches of diffusers, which ``model.enable_cache(config)`` installs.

Papers and code: the docstrings of the configuration classes in ``diffusers.hooks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModelError
from .external_cache import REMEDY, ExternalCache

if TYPE_CHECKING:
    from torch import nn


class DiffusersCache(ExternalCache):
    """A cache that ``model.enable_cache(config)`` installs."""

    package = "diffusers"
    module = "diffusers.hooks"
    command = "pip install -U diffusers"

    def _install(self, target: Any, models: Sequence[nn.Module]) -> None:
        for model in models:
            if not hasattr(model, "enable_cache"):
                raise UnsupportedModelError(
                    f"{type(model).__name__} has no enable_cache (CacheMixin) in diffusers {self.version()}, so it "
                    f"supports none of its caches: {REMEDY}"
                )
            (config,) = self.make_configs(target)
            cacheable: Any = model
            try:
                cacheable.enable_cache(config)
            except Exception:
                cacheable._cache_config = config  # disable_cache removes the hooks of this configuration
                cacheable.disable_cache()
                raise

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        for model in models:
            if getattr(model, "is_cache_enabled", False):
                model.disable_cache()  # type: ignore[operator]

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        for model in models:
            # Pipelines of diffusers do this at the end of a call, which a call that fails never reaches.
            model._reset_stateful_cache()  # type: ignore[operator]


class FirstBlockCache(DiffusersCache):
    """First-block cache of diffusers: the change of the first block decides whether the other blocks run."""

    configs = ("FirstBlockCacheConfig",)
    decides_from_content = True


class MagCache(DiffusersCache):
    """MagCache of diffusers: reuses residuals while their calibrated magnitude ratios allow."""

    configs = ("MagCacheConfig",)


class TaylorSeerCache(DiffusersCache):
    """TaylorSeer of diffusers: Taylor forecasts of the attention modules' outputs."""

    configs = ("TaylorSeerCacheConfig",)


class FasterCache(DiffusersCache):
    """FasterCache of diffusers: approximates attention and the unconditional branch."""

    configs = ("FasterCacheConfig",)


class PyramidAttentionBroadcast(DiffusersCache):
    """Pyramid attention broadcast of diffusers: reuses attention outputs."""

    configs = ("PyramidAttentionBroadcastConfig",)


class SeaCache(DiffusersCache):
    """SeaCache of diffusers: the spectral change of the sample decides whether the blocks run."""

    configs = ("SeaCacheConfig",)
    decides_from_content = True


class TextKVCache(DiffusersCache):
    """Text key-value cache of diffusers: computes the text's keys and values once."""

    configs = ("TextKVCacheConfig",)
