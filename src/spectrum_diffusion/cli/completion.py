"""What the shell completes: names of methods and models, and the choices of an option. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def complete_method(incomplete: str) -> list[str]:
    """Names of methods."""
    from ..methods import METHODS

    return _starting_with(incomplete, METHODS)


def complete_methods(incomplete: str) -> list[str]:
    """A list ``a,b:order=2,c``: its last name is completed."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete_method(last)]


def complete_model(incomplete: str) -> list[str]:
    """Names of the small models; the shell itself offers no folders beside them."""
    from ..loading import named_models

    return _starting_with(incomplete, sorted(named_models()))


def complete_from(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """The completion of an option that takes one of several words."""
    return lambda incomplete: _starting_with(incomplete, choices)


def _starting_with(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]
