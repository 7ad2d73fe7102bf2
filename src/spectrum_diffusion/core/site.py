"""A site: where in a denoiser a feature is read and replaced, as a run sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import SpectrumError
from .calls import Arguments
from .history import Feature

Judge = Callable[[torch.Tensor], Iterable[torch.Tensor] | None]
"""Asked with the signal of a call: the forecast feature to skip with, or None to evaluate."""


class Site:
    """Base class of all sites. ``structure`` is what a skipped call needs to know of the last evaluated one."""

    name: ClassVar[str]
    keeps: ClassVar[str]
    """What the feature is, for lists of methods."""
    inside_blocks: ClassVar[bool] = False
    """Whether the site answers for modules inside blocks, which a compiled block would never call."""
    skips_root: ClassVar[bool] = False
    """Whether nothing of the denoiser runs on a skipped step. Such a site needs no row and no open graph."""

    def __init__(self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Any]) -> None:
        """Find the site on a model.

        Args:
            model: the denoiser.
            options: what the method tells the site, see ``AnyMethod.site_options``.
            interceptor: gives the interceptor of a module.

        Raises:
            UnsupportedModelError: the model has no such site.
        """

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        """Run the whole denoiser: its output, the feature (empty if it was not reached) and the structure."""
        raise NotImplementedError

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        """Skip the denoiser up to the site and continue from the forecast feature; the output."""
        raise NotImplementedError

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        """Evaluate or skip, as the judge says; as :meth:`evaluate`, but a skipped call has the feature None."""
        raise SpectrumError(f"site={self.name!r} gives no signal to decide by: use a method with a fixed schedule")
