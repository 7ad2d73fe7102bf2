"""The methods by name. A new method is one short file and one line in :data:`METHODS`."""

from __future__ import annotations

from typing import Any

from ..core.words import did_you_mean
from ..errors import InvalidOptionError
from .base import SITES, AnyMethod, Method
from .deepcache import DeepCache
from .easycache import EasyCache
from .fewer_steps import FewerSteps
from .first_block_cache import FirstBlockCache
from .fora import Fora
from .hicache import HiCache
from .magcache import MagCache
from .spectrum import Paper, Spectrum
from .taylor import Reuse, Taylor
from .taylorseer import TaylorSeer
from .teacache import TeaCache
from .toca import ToCa

METHODS: dict[str, type[AnyMethod]] = {
    "spectrum": Spectrum,
    "paper": Paper,
    "reuse": Reuse,
    "taylor": Taylor,
    "fewer-steps": FewerSteps,
    "fora": Fora,
    "taylorseer": TaylorSeer,
    "hicache": HiCache,
    "teacache": TeaCache,
    "first-block-cache": FirstBlockCache,
    "easycache": EasyCache,
    "magcache": MagCache,
    "toca": ToCa,
    "deepcache": DeepCache,
}


def register_method(name: str, method: type[AnyMethod]) -> type[AnyMethod]:
    """Make ``enable(…, method=name)`` know a method of your own: a frozen dataclass derived from :class:`Method`.

    Raises:
        InvalidOptionError: the name is taken by another class, or ``method`` is no subclass of Method.
    """
    if not (isinstance(method, type) and issubclass(method, AnyMethod)):
        raise InvalidOptionError(f"method={method!r} is no subclass of spectrum_diffusion.Method: derive one from it")
    if not isinstance(name, str) or not name:
        raise InvalidOptionError(f"name={name!r} is no name for a method: give a non-empty string")
    if METHODS.get(name, method) is not method:
        raise InvalidOptionError(f"the name {name!r} is taken by {METHODS[name].__name__}: choose another")
    METHODS[name] = method
    return method


def make_method(name: str, **options: Any) -> AnyMethod:
    """The method of that name with its options checked.

    Raises:
        InvalidOptionError: an unknown name or option (the nearest one is suggested), or a wrong value.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidOptionError(
            f"method={name!r} is unknown{did_you_mean(name, METHODS)}: choose one of {_list(METHODS)}"
        )
    known = METHODS[name].defaults()
    for option in options:
        if option not in known and METHODS[name].knows_options():
            raise InvalidOptionError(
                f"{name} has no option {option!r}{did_you_mean(option, known)}: its options are {_list(known)}"
            )
    if options.get("speedup") is not None and (given := [o for o in ("interval", "warmup", "slope") if o in options]):
        raise InvalidOptionError(
            f"speedup finds the schedule by itself and would ignore {_list(given)}: give either speedup or those"
        )
    return METHODS[name](**options)


def name_of(method: AnyMethod) -> str:
    """The name under which a method is known."""
    return next((name for name, cls in METHODS.items() if cls is type(method)), type(method).__name__)


def _list(names: Any) -> str:
    return ", ".join(names)


__all__ = ["METHODS", "SITES", "AnyMethod", "Method", "make_method", "name_of", "register_method"]
