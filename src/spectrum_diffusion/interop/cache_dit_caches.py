"""The caches of the package cache-dit (https://github.com/vipshop/cache-dit)."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from .external_cache import ExternalCache

if TYPE_CHECKING:
    from torch import nn


class CacheDit(ExternalCache):
    """A cache that ``cache_dit.enable_cache`` installs. Its log goes to stderr, because stdout belongs to results."""

    package = "cache-dit"
    decides_from_content = True
    module = "cache_dit"
    command = "pip install 'spectrum-diffusion[external]', or pip install cache-dit"

    def _install(self, target: Any, models: Sequence[nn.Module]) -> None:
        config, *calibrator = self.make_configs()
        options = {"calibrator_config": calibrator[0]} if calibrator else {}
        self._package().enable_cache(target, cache_config=config, **options)

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        for owner in (target, *models):
            if owner is not None:
                with suppress(AttributeError):  # it fails to remove itself from a model that has offload hooks
                    self._package().disable_cache(owner)

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        from torch import nn

        if isinstance(target, nn.Module):  # on a pipeline it creates new contexts at each call
            self._package().refresh_context(target)

    @classmethod
    def _package(cls) -> Any:
        return _import_cache_dit()


class DBCache(CacheDit):
    """Dual block cache of cache-dit: the change of the first blocks decides whether the others run."""

    configs = ("DBCacheConfig",)


class TaylorSeerCalibrator(CacheDit):
    """Dual block cache of cache-dit with Taylor forecasts."""

    configs = ("DBCacheConfig", "TaylorSeerCalibratorConfig")


class DMDCalibrator(CacheDit):
    """Dual block cache of cache-dit with dynamic mode decomposition."""

    configs = ("DBCacheConfig", "DMDCalibratorConfig")


class FoCaCalibrator(CacheDit):
    """Dual block cache of cache-dit with FoCa's forecast and calibration."""

    configs = ("DBCacheConfig", "FoCaCalibratorConfig")


class DBPrune(CacheDit):
    """Dynamic block pruning of cache-dit: leaves out blocks that change little."""

    configs = ("DBPruneConfig",)


@cache
def _import_cache_dit() -> Any:
    package = importlib.import_module("cache_dit")
    for handler in logging.getLogger("CACHE_DIT").handlers:
        if type(handler) is logging.StreamHandler:
            handler.__dict__.pop("flush", None)  # bound to the stdout of the time of the import
            handler.setStream(_CurrentStderr())
    return package


class _CurrentStderr:
    """Writes to the ``sys.stderr`` of the moment, which may have been replaced since the import of the package."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
