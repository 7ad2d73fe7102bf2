"""Methods by name. A new method is one short file and one line in :data:`METHODS`."""

from __future__ import annotations

from typing import Any

from ..core.words import did_you_mean, unknown_choice
from ..errors import InvalidOptionError
from .base import SITES, AnyMethod, Method
from .registry import Registry, check_class

METHODS = Registry()
METHODS.add(
    {
        "spectrum": "spectrum:Spectrum",
        "paper": "paper:Paper",
        "spectrum-blend": "paper:SpectrumBlend",
        "reuse": "taylor:Reuse",
        "taylor": "taylor:Taylor",
        "fewer-steps": "fewer_steps:FewerSteps",
        "fora": "fora:Fora",
        "taylorseer": "taylorseer:TaylorSeer",
        "hicache": "hicache:HiCache",
        "teacache": "teacache:TeaCache",
        "first-block-cache": "first_block_cache:FirstBlockCache",
        "easycache": "easycache:EasyCache",
        "magcache": "magcache:MagCache",
        "toca": "toca:ToCa",
        "deepcache": "deepcache:DeepCache",
    },
    package=__name__,
)


def register_method(name: str, method: type[AnyMethod]) -> type[AnyMethod]:
    """Register a method of your own for ``enable(…, method=name)``: a frozen dataclass derived from :class:`Method`.

    A package registers its methods through the entry point group "spectrum_diffusion.methods" without calling this.

    Raises:
        InvalidOptionError: another class has the name, or ``method`` is not a complete subclass of Method.
    """
    check_class(method, f"method={method!r}")
    if not isinstance(name, str) or not name:
        raise InvalidOptionError(f"name={name!r} cannot name a method: pass a non-empty string")
    if METHODS.get(name, method) is not method:
        raise InvalidOptionError(f"the name {name!r} belongs to {METHODS[name].__name__}: choose another name")
    METHODS[name] = method
    return method


def make_method(name: str, /, **options: Any) -> AnyMethod:
    """The method called ``name``, with its options checked.

    Raises:
        InvalidOptionError: an unknown name or option (the nearest one is suggested), or a wrong value.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidOptionError(unknown_choice(f"method={name!r}", name, METHODS))
    known = METHODS[name].defaults()
    for option in options:
        if option not in known and METHODS[name].knows_options():
            hint = _whose(option, name) or did_you_mean(option, known)
            raise InvalidOptionError(f"{name} has no option {option!r}{hint}: its options are {_list(known)}")
    replaced = getattr(METHODS[name], "found_by_speedup", ())
    if options.get("speedup") is not None and (given := [option for option in replaced if option in options]):
        raise InvalidOptionError(
            f"speedup determines the schedule and would ignore {_list(given)}: leave out {_list(given)} or speedup"
        )
    listed = getattr(METHODS[name], "given_by_evaluated", ())
    if options.get("evaluated") is not None and (given := [option for option in listed if option in options]):
        raise InvalidOptionError(
            f"evaluated lists the steps, so that {_list(given)} would be ignored: leave out {_list(given)} or evaluated"
        )
    return METHODS[name](**options)


def name_of(method: AnyMethod) -> str:
    """The registered name of a method, or the name of its class."""
    return METHODS.name_of(type(method)) or type(method).__name__


def _whose(option: str, name: str) -> str:
    """A hint at the methods of this package that have an option, for one of them."""
    owners = [other for other in METHODS if ":" not in other and option in METHODS[other].defaults()]
    if ":" in name or not owners:
        return ""
    return f" (an option of {_list([*owners[:2], *['…'] * (len(owners) > 2)])})"


def _list(names: Any) -> str:
    return ", ".join(names)


__all__ = ["METHODS", "SITES", "AnyMethod", "Method", "make_method", "name_of", "register_method"]
