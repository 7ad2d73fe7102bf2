"""Where in a denoiser features are read and replaced. The only code that touches a model's modules.

A new site is one file with a subclass of :class:`Site`, and one line here.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ..core.site import Site
    from .interceptor import Interceptor

GENERAL = {
    "last_block": "last_block:LastBlock",
    "output": "output:Output",
    "module": "module:Modules",
}
"""Sites at which every general forecaster works: name → file and class."""

SITES = GENERAL | {
    "residual": "residual:Residual",
    "first_block": "first_block:FirstBlock",
    "watched": "watched:Watched",
    "deep": "deep:Deep",
    "tokens": "tokens:Tokens",
    "output_residual": "output_residual:OutputResidual",
    "observed": "observed:Observed",
}
"""All sites: name → file and class. Classes are imported on first use, because torch takes seconds."""


@cache
def site_class(name: str) -> type[Site]:
    """The class of the site called ``name``.

    Raises:
        InvalidOptionError: there is no such site.
    """
    if name not in SITES:
        raise InvalidOptionError(f"site={name!r} is unknown: choose one of {', '.join(SITES)}")
    file, _, cls = SITES[name].partition(":")
    found: type[Site] = getattr(import_module(f".{file}", __name__), cls)
    return found


def make_site(
    model: nn.Module, name: str, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
) -> Site:
    """The site called ``name`` on a model.

    Args:
        model: the denoiser.
        name: a name of :data:`SITES`.
        options: what the site needs to know beside the model, see ``AnyMethod.site_options``.
        interceptor: gives the interceptor of a module.

    Raises:
        UnsupportedModelError: the model has no such site.
    """
    return site_class(name)(model, options, interceptor)
