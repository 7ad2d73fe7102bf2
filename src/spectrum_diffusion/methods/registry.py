"""The registry of methods: lists names at once, and imports a class when it is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name

from ..errors import InvalidOptionError, SpectrumError, warn
from .base import AnyMethod

GROUP = "spectrum_diffusion.methods"
"""The entry point group through which other packages offer methods: ``name = "package.module:Class"``."""
BUNDLED = "spectrum_diffusion.interop"
"""The module of this package that adds methods when imported. A name, because methods may not import it."""

MethodClass = type[AnyMethod]


class Registry(MutableMapping[str, MethodClass]):
    """Methods by name. A class is imported when it is looked up, so that listing the names imports no torch."""

    def __init__(self) -> None:
        self._classes: dict[str, MethodClass | Callable[[], MethodClass]] = {}
        self._is_complete = False

    def add(self, places: Mapping[str, str], package: str) -> None:
        """Add methods by name, each as ``"module:Class"`` within a package. Nothing is imported yet."""
        self._classes |= {name: partial(resolve_name, f"{package}.{place}") for name, place in places.items()}

    def __getitem__(self, name: str) -> MethodClass:
        if name not in self._classes:
            self._complete()
        entry = self._classes[name]
        if not isinstance(entry, type):
            self._classes[name] = entry = entry()
        return entry

    def __setitem__(self, name: str, method: MethodClass) -> None:
        self._classes[name] = method

    def __delitem__(self, name: str) -> None:
        self._complete()
        del self._classes[name]

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(list(self._classes))

    def __len__(self) -> int:
        self._complete()
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in list(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"

    def usable(self) -> dict[str, MethodClass]:
        """Every method that can be imported. A warning names the methods of other packages that cannot."""
        usable = {}
        for name in self:
            try:
                usable[name] = self[name]
            except SpectrumError as error:
                warn(str(error))
        return usable

    def name_of(self, method: MethodClass) -> str | None:
        """The name of a class, or None if it is not registered."""
        return next((name for name, entry in self._classes.items() if entry is method), None)

    def _complete(self) -> None:
        """Add the methods of other packages. They never replace a name that exists."""
        if self._is_complete:
            return
        self._is_complete = True  # first, because the import below may list the methods
        import_module(BUNDLED)
        for entry in entry_points(group=GROUP):
            self._classes.setdefault(entry.name, partial(_load, entry))


def _load(entry: EntryPoint) -> MethodClass:
    package = entry.dist.name if entry.dist is not None else "a package"
    try:
        method = entry.load()
    except Exception as error:  # the code of another package may fail in any way
        raise SpectrumError(
            f"cannot import method {entry.name!r} of {package} from {entry.value}: {type(error).__name__}: {error}. "
            "Repair the package, or uninstall it"
        ) from error
    return check_class(method, f"{entry.value} of {package}")


def check_class(method: object, shown: str) -> MethodClass:
    """``method`` if it is a complete method class; ``shown`` names it in the message if not.

    Raises:
        InvalidOptionError: it is not a method class, or it lacks a method that every run needs.
    """
    if not (isinstance(method, type) and issubclass(method, AnyMethod)):
        raise InvalidOptionError(
            f"{shown} is not a subclass of spectrum_diffusion.Method: derive a frozen dataclass from it"
        )
    if not method.overrides("evaluates"):
        raise InvalidOptionError(
            f"{shown} does not say which steps it evaluates: write evaluates(self, step, total), or derive it from "
            "spectrum_diffusion.Method, which has a schedule"
        )
    forecasts = not (method.in_place or method.observes)
    if forecasts and not method.overrides("weights", "weights_at", "forecast"):
        raise InvalidOptionError(
            f"{shown} does not say how it forecasts: write weights(self, evaluated, target, total), which returns a "
            "weight for each evaluated step"
        )
    if undeclared := _not_fields(method):
        raise InvalidOptionError(
            f"{shown} declares {', '.join(undeclared)}, which cannot be set as options: decorate the class with "
            "@dataclass(frozen=True, kw_only=True)"
        )
    return method


def _not_fields(method: MethodClass) -> list[str]:
    """Annotated attributes that are not options, because the class is not decorated as a dataclass."""
    known = {option.name for option in fields(method)}
    own = inspect.get_annotations(method)
    return [name for name, kind in own.items() if name not in known and "ClassVar" not in str(kind)]
