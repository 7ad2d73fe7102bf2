"""Caches of other packages, run as they are beside our methods: diffusers' ``enable_cache`` and cache-dit.

Nothing of their arithmetic is here. A rival is put on with its own package's functions, its options are the fields of
its own configuration with its own defaults, and a run only watches how much of the denoiser it lets run. Papers and
code: the configurations' docstrings in ``diffusers.hooks``, and https://github.com/vipshop/cache-dit.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InvalidOptionError, SpectrumError, UnsupportedModelError
from ..methods.base import AnyMethod

if TYPE_CHECKING:
    from torch import nn

WAY_OUT = "use another method, such as spectrum"


@dataclass(frozen=True, init=False)
class ExternalCache(AnyMethod):
    """A cache of another package. Options are the fields of its configuration.

    Each generation begins without the state of the one before, as after a whole call of the package's own; the
    package itself leaves it behind where a call fails.

    Attributes:
        given: the options that were given.
    """

    given: dict[str, Any] = field(default_factory=dict, hash=False)

    sites: ClassVar[tuple[str, ...]] = ("observed",)
    observes: ClassVar[bool] = True
    limits: ClassVar[str] = "what the installed version of the package knows"
    package: ClassVar[str] = ""
    module: ClassVar[str] = ""
    configs: ClassVar[tuple[str, ...]] = ()
    """Names of the package's configuration classes that the options go to."""
    command: ClassVar[str] = ""

    def __init__(self, **options: Any) -> None:
        object.__setattr__(self, "site", "observed")
        object.__setattr__(self, "given", options)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        if not cls.available():
            return {}
        every = (item for name in cls.configs for item in dataclasses.fields(cls._class(name)))
        return {item.name: _default(item) for item in every}

    @classmethod
    def version(cls) -> str:
        """The installed version of the package, or "" where it isn't installed."""
        try:
            return metadata.version(cls.package)
        except metadata.PackageNotFoundError:
            return ""

    @classmethod
    def available(cls) -> bool:
        """Whether the installed package has this cache."""
        return bool(cls.version()) and all(hasattr(cls._package(), name) for name in cls.configs)

    @classmethod
    def knows_options(cls) -> bool:
        return cls.available()  # else enable(…) says how to get the package

    def check(self) -> None:
        """Raise before anything is changed.

        Raises:
            UnsupportedModelError: the package isn't installed, or its version has no such cache.
            InvalidOptionError: the package's configuration refuses the options.
        """
        if not self.available():
            have = f"{self.package} {self.version()} has no {' with '.join(self.configs)}"
            raise UnsupportedModelError(
                f"{have if self.version() else f'{self.package} is not installed'}: {self.command}"
            )
        self.make_configs()

    def make_configs(self, target: Any = None) -> list[Any]:
        """The package's configurations with the options; made anew, since the package writes into them."""
        return [self._make(self._class(name), target) for name in self.configs]

    def install(self, target: Any, models: Sequence[nn.Module]) -> None:
        """Put the cache on a pipeline, or on a bare model.

        Raises:
            UnsupportedModelError: the package refuses, in its words.
        """
        try:
            self._install(target, models)
        except SpectrumError:
            raise
        except Exception as error:  # assertions, missing attributes, lookups: packages refuse in many ways
            raise UnsupportedModelError(
                f"{self.package} {self.version()} can't put {' with '.join(self.configs)} on {type(target).__name__}: "
                f"{type(error).__name__}: {str(error).strip()}: {WAY_OUT}"
            ) from error

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Take the cache off with the package's own function; ``target`` is None where it was dropped."""
        raise NotImplementedError

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Forget what the last generation left, before the next one."""
        raise NotImplementedError

    def evaluates(self, step: int, total: int) -> bool:
        return True

    def untouched(self, total: int) -> bool:
        return False

    def options(self) -> dict[str, Any]:
        return {name: _plain(value) for name, value in self.given.items()}

    def _install(self, target: Any, models: Sequence[nn.Module]) -> None:
        raise NotImplementedError

    @classmethod
    def _package(cls) -> Any:
        return importlib.import_module(cls.module)

    @classmethod
    def _class(cls, name: str) -> Any:
        return getattr(cls._package(), name)

    def _make(self, config: Any, target: Any) -> Any:
        names = [item.name for item in dataclasses.fields(config)]
        options = {name: _value(name, value) for name, value in self.given.items() if name in names}
        # Without it the caches that look at the timestep refuse; their documentation gives it this value everywhere.
        if "current_timestep_callback" in names and hasattr(type(target), "current_timestep"):
            pipe = weakref.ref(target)
            options.setdefault("current_timestep_callback", lambda: pipe().current_timestep)  # type: ignore[union-attr]
        try:
            return config(**options)
        except (ValueError, TypeError) as error:
            raise InvalidOptionError(
                f"{config.__name__} of {self.package} {self.version()} refuses these options: {str(error).strip()}"
            ) from error


class DiffusersCache(ExternalCache):
    """A cache that diffusers' own ``model.enable_cache(config)`` offers."""

    package = "diffusers"
    module = "diffusers.hooks"
    command = "pip install -U diffusers"

    def _install(self, target: Any, models: Sequence[nn.Module]) -> None:
        for model in models:
            if not hasattr(model, "enable_cache"):
                raise UnsupportedModelError(
                    f"{type(model).__name__} has no enable_cache (CacheMixin) in diffusers {self.version()}, so none "
                    f"of its caches can be put on it: {WAY_OUT}"
                )
            (config,) = self.make_configs(target)
            enabling: Any = model
            try:
                enabling.enable_cache(config)
            except Exception:
                enabling._cache_config = config  # disable_cache takes off what this configuration may have put on
                enabling.disable_cache()
                raise

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        for model in models:
            if getattr(model, "is_cache_enabled", False):
                model.disable_cache()  # type: ignore[operator]

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        for model in models:
            # What every pipeline of diffusers does itself, but at its end only, which a call that fails never reaches.
            model._reset_stateful_cache()  # type: ignore[operator]


class CacheDit(ExternalCache):
    """A cache of the package cache-dit. Its log goes to stderr, as stdout belongs to the result."""

    package = "cache-dit"
    module = "cache_dit"
    command = "pip install 'spectrum-diffusion[rivals]', or pip install cache-dit"

    def _install(self, target: Any, models: Sequence[nn.Module]) -> None:
        config, *calibrator = self.make_configs()
        options = {"calibrator_config": calibrator[0]} if calibrator else {}
        self._package().enable_cache(target, cache_config=config, **options)

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        for each in (target, *models):
            if each is not None:
                with suppress(AttributeError):  # it can't take itself off a model that offload hooks stand on
                    self._package().disable_cache(each)

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        from torch import nn

        if isinstance(target, nn.Module):  # on a pipeline it makes its contexts anew at each call by itself
            self._package().refresh_context(target)

    @classmethod
    def _package(cls) -> Any:
        return _import_cache_dit()


@cache
def _import_cache_dit() -> Any:
    package = importlib.import_module("cache_dit")
    for handler in logging.getLogger("CACHE_DIT").handlers:
        if type(handler) is logging.StreamHandler:
            handler.__dict__.pop("flush", None)  # that of the stdout of its import
            handler.setStream(_Stderr())
    return package


class _Stderr:
    """The stderr of the moment, which may be another one than when the package was imported."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None if item.default is dataclasses.MISSING else _plain(item.default)


def _plain(value: Any) -> Any:
    """JSON-ready."""
    if hasattr(value, "tolist"):  # a tensor or an array
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    known = value is None or isinstance(value, (bool, int, float, str, list, dict))
    return value if known else str(value).removeprefix("torch.")


def _value(name: str, value: Any) -> Any:
    """A type of torch may be given by its name, as on the command line."""
    if name.endswith("dtype") and isinstance(value, str):
        import torch  # here, because the names of the caches are listed without it

        value = getattr(torch, value, value)
        if not isinstance(value, torch.dtype):
            raise InvalidOptionError(f'{name}={value!r} is no type of torch: give one such as "float32"')
    return value


_DIFFUSERS = {
    "fbc": ("FirstBlockCacheConfig", "first-block cache: the first block tells whether the others run"),
    "magcache": ("MagCacheConfig", "MagCache: residuals are kept while the magnitudes' calibrated ratios allow"),
    "taylorseer": ("TaylorSeerCacheConfig", "TaylorSeer: Taylor forecasts of the attention modules' outputs"),
    "fastercache": ("FasterCacheConfig", "FasterCache: attention and the unconditional branch are approximated"),
    "pab": ("PyramidAttentionBroadcastConfig", "pyramid attention broadcast: attention outputs are used again"),
    "seacache": ("SeaCacheConfig", "SeaCache: spectral change of the sample tells whether the blocks run"),
    "text-kv": ("TextKVCacheConfig", "text keys and values are computed once"),
}
_CACHE_DIT = {
    "dbcache": (("DBCacheConfig",), "dual block cache: the first blocks tell whether the others run"),
    "taylorseer": (("DBCacheConfig", "TaylorSeerCalibratorConfig"), "dual block cache with Taylor forecasts"),
    "dmd": (("DBCacheConfig", "DMDCalibratorConfig"), "dual block cache with dynamic mode decomposition"),
    "foca": (("DBCacheConfig", "FoCaCalibratorConfig"), "dual block cache with FoCa's forecast and calibration"),
    "dbprune": (("DBPruneConfig",), "dynamic block pruning: blocks that change little are left out"),
}


def _external_cache(base: type[ExternalCache], configs: tuple[str, ...], idea: str) -> type[ExternalCache]:
    made: Any = type(configs[-1].removesuffix("Config"), (base,), {"configs": configs, "__module__": __name__})
    made.__doc__ = f"As {base.package} has it, {idea}."
    return made


EXTERNAL_CACHES: dict[str, type[ExternalCache]] = {
    **{
        f"diffusers:{name}": _external_cache(DiffusersCache, (config,), idea)
        for name, (config, idea) in _DIFFUSERS.items()
    },
    **{f"cache-dit:{name}": _external_cache(CacheDit, configs, idea) for name, (configs, idea) in _CACHE_DIT.items()},
}
"""The rivals by name, whether installed or not."""
