"""Base class of sites: where in a denoiser a feature is read and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import SpectrumError
from .calls import Arguments
from .history import Feature

Choose = Callable[[torch.Tensor], Iterable[torch.Tensor] | None]
"""From the signal of a call to the forecast feature of a skipped step, or to None for an evaluated step."""


class Site:
    """Base class of sites. ``structure`` is what a skipped call needs to know of the last evaluated call."""

    name: ClassVar[str]
    keeps: ClassVar[str]
    """What the feature is, for lists of methods."""
    inside_blocks: ClassVar[bool] = False
    """Whether the site intercepts modules inside blocks, which a compiled block does not call."""
    skips_root: ClassVar[bool] = False
    """Whether a skipped step runs nothing of the denoiser. Such a site works without a row and on compiled models."""
    copies: bool = False
    """Whether features are copies, which nothing else writes into."""
    at_scheduler: ClassVar[bool] = False
    """Whether what the scheduler is given is forecast, once for all branches, in place of a denoiser's feature."""

    def __init__(self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Any]) -> None:
        """Find the site in a model.

        Args:
            model: the denoiser.
            options: the method's options that the site needs, see ``AnyMethod.site_options``.
            interceptor: returns the interceptor of a module.

        Raises:
            UnsupportedModelError: the model has no such site.
        """

    def skipped(self, model: nn.Module) -> list[nn.Module]:
        """The modules of the denoiser that do not run on a skipped step, whole."""
        return [model] if self.skips_root else []

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        """Run the whole denoiser.

        Returns:
            The output, the feature (empty if the site was not reached), and the structure.
        """
        raise NotImplementedError

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        """Skip the denoiser up to the site and continue from the forecast feature; returns the output."""
        raise NotImplementedError

    def decide(self, call: Arguments, choose: Choose, structure: Any) -> tuple[Any, Feature | None, Any]:
        """Evaluate or skip, as ``choose`` says. Returns what :meth:`evaluate` does; the feature is None if skipped."""
        raise SpectrumError(f"site={self.name!r} gives no signal to decide by: use a method with a fixed schedule")
