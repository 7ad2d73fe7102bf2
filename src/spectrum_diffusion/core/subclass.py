"""Thin subclasses that change one instance and leave its copies plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def thin_subclass(cls: type, members: Mapping[str, Any], when_copied: Callable[[], None] | None = None) -> type:
    """A subclass of the same name, for one instance. Pickles and copies of the instance are of the plain class.

    It equals the plain class, because pipelines compare ``type(scheduler)`` with a class.

    Args:
        cls: the plain class.
        members: what the subclass overrides.
        when_copied: called before a copy is made; it may refuse.
    """

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        if when_copied is not None:
            when_copied()
        make, args, *rest = super(subclass, self).__reduce_ex__(protocol)
        if make.__name__ == "__newobj__":  # pickle refuses it for another class than the object's
            make = object.__new__
        return (make, tuple(cls if arg is subclass else arg for arg in args), *rest)

    inherited = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    kind: Any = type(cls)  # such as that of an abstract class
    equality = {
        "__eq__": lambda self, other: other is self or other == cls,
        "__hash__": lambda self: hash(cls),
    }
    equal: Any = type(kind.__name__, (kind,), equality)
    subclass: Any = equal(cls.__name__, (cls,), {**inherited, **members, "__reduce_ex__": __reduce_ex__})
    return subclass  # type: ignore[no-any-return]
