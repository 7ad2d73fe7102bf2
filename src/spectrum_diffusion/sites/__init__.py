"""Sites: where in a denoiser features are read and replaced. No other code touches a model's modules.

A new site is one file with a subclass of :class:`Site`, and one line here.
"""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ..core.words import unknown_choice
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
"""Sites at which every general forecaster works: name → module and class."""

SITES = GENERAL | {
    "residual": "residual:Residual",
    "first_block": "first_block:FirstBlock",
    "watched": "watched:Watched",
    "deep": "deep:Deep",
    "tokens": "tokens:Tokens",
    "output_residual": "output_residual:OutputResidual",
    "observed": "observed:Observed",
    "sampler": "sampler:Sampler",
}
"""All sites: name → module and class. Classes are imported on first use, because importing torch takes seconds."""


@cache
def site_class(name: str) -> type[Site]:
    """The class of the site called ``name``.

    Raises:
        InvalidOptionError: there is no such site.
    """
    if name not in SITES:
        raise InvalidOptionError(unknown_choice(f"site={name!r}", name, SITES))
    site: type[Site] = resolve_name(f"{__name__}.{SITES[name]}")
    return site


def make_site(
    model: nn.Module, name: str, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
) -> Site:
    """The site called ``name``, in a model.

    Args:
        model: the denoiser.
        name: a name of :data:`SITES`.
        options: the method's options that the site needs, see ``AnyMethod.site_options``.
        interceptor: returns the interceptor of a module.

    Raises:
        UnsupportedModelError: the model has no such site.
    """
    return site_class(name)(model, options, interceptor)
