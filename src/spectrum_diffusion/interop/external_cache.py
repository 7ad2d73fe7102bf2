"""Base class of the caches of other packages, which run as they are beside the methods of this library.

No arithmetic of theirs is here. The package's own functions install and remove a cache, its options are the fields of
the package's configuration classes with their defaults, and a run only observes how much of the denoiser executes.
"""

from __future__ import annotations

import dataclasses
import importlib
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InvalidOptionError, SpectrumError, UnsupportedModelError
from ..methods.base import AnyMethod

if TYPE_CHECKING:
    from torch import nn

REMEDY = "use another method, such as spectrum"


@dataclass(frozen=True, init=False)
class ExternalCache(AnyMethod):
    """A cache of another package. Its options are the fields of the package's configuration classes.

    Each generation starts without the state of the previous one, as it does after a complete call without this
    library. The packages themselves leave their state behind when a call fails.

    Attributes:
        given: the options that were passed.
    """

    given: dict[str, Any] = field(default_factory=dict, hash=False)

    sites: ClassVar[tuple[str, ...]] = ("observed",)
    observes: ClassVar[bool] = True
    limits: ClassVar[str] = "models that the installed version of the package supports"
    package: ClassVar[str] = ""
    module: ClassVar[str] = ""
    configs: ClassVar[tuple[str, ...]] = ()
    """Names of the package's configuration classes, which take the options."""
    command: ClassVar[str] = ""
    """The command that installs the package."""

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
        """The installed version of the package, or "" if it is not installed."""
        try:
            return metadata.version(cls.package)
        except metadata.PackageNotFoundError:
            return ""

    @classmethod
    def available(cls) -> bool:
        return bool(cls.version()) and all(hasattr(cls._package(), name) for name in cls.configs)

    @classmethod
    def knows_options(cls) -> bool:
        return cls.available()  # if not, check() says how to install the package

    def check(self) -> None:
        """Raise before anything changes.

        Raises:
            UnsupportedModelError: the package is not installed, or its version has no such cache.
            InvalidOptionError: the package's configuration refuses the options.
        """
        if not self.version():
            raise UnsupportedModelError(f"{self.package} is not installed: {self.command}")
        if not self.available():
            missing = " with ".join(self.configs)
            raise UnsupportedModelError(f"{self.package} {self.version()} has no {missing}: {self.command}")
        self.make_configs()

    def make_configs(self, target: Any = None) -> list[Any]:
        """New configurations with the options; never shared, because the package writes into them."""
        return [self._make_config(self._class(name), target) for name in self.configs]

    def install(self, target: Any, models: Sequence[nn.Module]) -> None:
        """Install the cache on a pipeline, or on a bare model.

        Raises:
            UnsupportedModelError: the package refuses; the message quotes it.
        """
        try:
            self._install(target, models)
        except SpectrumError:
            raise
        except Exception as error:  # packages refuse with assertions, missing attributes, failed look-ups and more
            raise UnsupportedModelError(
                f"{self.package} {self.version()} cannot install {' with '.join(self.configs)} on "
                f"{type(target).__name__}: {type(error).__name__}: {str(error).strip()}: {REMEDY}"
            ) from error

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Remove the cache with the package's own function; ``target`` is None if it no longer exists."""
        raise NotImplementedError

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Discard the state of the last generation before the next one."""
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

    def _make_config(self, config: Any, target: Any) -> Any:
        names = [item.name for item in dataclasses.fields(config)]
        options = {name: _torch_dtype(name, value) for name, value in self.given.items() if name in names}
        # Caches that depend on the timestep refuse to work without it. Every example in their documentation sets it so.
        if "current_timestep_callback" in names and hasattr(type(target), "current_timestep"):
            pipe = weakref.ref(target)
            options.setdefault("current_timestep_callback", lambda: pipe().current_timestep)  # type: ignore[union-attr]
        try:
            return config(**options)
        except (ValueError, TypeError) as error:
            raise InvalidOptionError(
                f"{config.__name__} of {self.package} {self.version()} refuses these options: {str(error).strip()}"
            ) from error


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None if item.default is dataclasses.MISSING else _plain(item.default)


def _plain(value: Any) -> Any:
    """A JSON-ready value: tensors and arrays as lists, a torch dtype by its name."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    is_json = value is None or isinstance(value, (bool, int, float, str, list, dict))
    return value if is_json else str(value).removeprefix("torch.")


def _torch_dtype(name: str, value: Any) -> Any:
    """The torch dtype where an option is a dtype that was given by its name, as on the command line."""
    if name.endswith("dtype") and isinstance(value, str):
        import torch  # not at the top: listing the caches must not import it

        value = getattr(torch, value, value)
        if not isinstance(value, torch.dtype):
            raise InvalidOptionError(f'{name}={value!r} is not a dtype of torch: pass one such as "float32"')
    return value
