"""Where in a denoiser features are read and replaced. The only code that touches a model's modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import nn

from ..core.calls import Intercepted
from ..core.run import Site
from ..errors import SpectrumError
from . import denoisers
from .blocks import BlockSite, ObservedSite
from .output import Output
from .passes import Signal, first_residual, modulated_input
from .tokens import Tokens


class Where(Protocol):
    """What of a method says where its features lie."""

    @property
    def site(self) -> str:
        """A name of :data:`SITES`."""

    @property
    def site_options(self) -> tuple[Any, ...]:
        """What the site needs to know beside the model."""


Make = Callable[[nn.Module, Where, Callable[[nn.Module], Intercepted]], Site]


def _last_block(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    blocks, tails = denoisers.resolve(model, denoisers.last_block_row(model))
    return BlockSite("last_block", {"block": blocks, "tail": tails}, interceptor)


def _modules(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    features, skipped = denoisers.modules_of(model)
    return BlockSite("module", {"module": features, "block": skipped}, interceptor)


def _deep(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    last, before = denoisers.deep_modules(model, *where.site_options)
    return BlockSite("deep", {"module": [last], "block": before}, interceptor)


def _residual(
    base: str, signal: Signal, model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]
) -> Site:
    first = denoisers.first_block(model)
    blocks, tails = denoisers.resolve(model, denoisers.last_block_row(model))
    rest = [block for block in blocks if block is not first]
    roles = {"first": [first], "block": rest, "tail": tails}
    if signal is modulated_input:
        roles["embedder"] = denoisers.time_embedders(model)
    return BlockSite("residual", roles, interceptor, base=base, signal=signal)


SITES: dict[str, Make] = {
    "last_block": _last_block,
    "output": lambda *_: Output(),
    "module": _modules,
    "residual": partial(_residual, "before", modulated_input),
    "first_block": partial(_residual, "after", first_residual),
    "watched": partial(_residual, "", modulated_input),
    "deep": _deep,
    "tokens": lambda model, where, interceptor: Tokens(model, where.site_options, interceptor),
    "output_residual": lambda *_: Output(residual=True),
    "observed": lambda model, _, interceptor: ObservedSite(denoisers.layers_of(model), interceptor),
}
"""The sites by name."""


def make_site(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    """The site that a method asks for, on a model.

    Raises:
        UnsupportedModelError: the model has no such site.
    """
    if where.site not in SITES:
        raise SpectrumError(f"site={where.site!r} is unknown: choose one of {', '.join(SITES)}")
    return SITES[where.site](model, where, interceptor)
