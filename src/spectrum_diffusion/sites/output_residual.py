"""The site of EasyCache: the feature is what the denoiser adds to its sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..core.calls import Arguments
from ..core.history import Feature
from ..errors import UnsupportedModelError
from .denoisers import row_for, unwrap
from .interceptor import Interceptor
from .output import Output

REMEDY = 'use spectrum, taylor or reuse, which also work with site="output"'


class OutputResidual(Output):
    """Works with any denoiser whose outputs have the shapes of its samples."""

    name = "output_residual"
    keeps = "what the denoiser adds to its sample"
    copies = True

    def __init__(
        self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
    ) -> None:
        super().__init__(model, options, interceptor)
        inner, row = unwrap(model), row_for(model)
        if row is not None and len(row.tail) > 1 and (streams := _more_samples(inner)):
            raise UnsupportedModelError(
                f"{type(inner).__name__} denoises {', '.join(streams)} beside its sample and returns an output for "
                f"each, so the difference to the sample is undefined: {REMEDY}"
            )
        if (channels := _channels(getattr(inner, "config", None))) is not None:
            raise UnsupportedModelError(
                f"{type(inner).__name__} takes samples of {channels[0]} channels but returns {channels[1]}, so their "
                f"difference is undefined: {REMEDY}"
            )

    def feature_of(self, call: Arguments, outputs: Feature) -> Feature:
        samples = call.samples
        returned, given = ([tuple(tensor.shape) for tensor in tensors] for tensors in (outputs, samples))
        if returned != given:
            raise UnsupportedModelError(
                f"{type(call.module).__name__} takes samples of the shapes {given} but returns {returned}, so their "
                f"difference is undefined: {REMEDY}"
            )
        return tuple(output - sample for output, sample in zip(outputs, samples, strict=True))

    def output_of(self, call: Arguments, feature: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        return (value + sample for value, sample in zip(feature, call.samples, strict=True))


def _more_samples(model: nn.Module) -> list[str]:
    """The samples beside the first that every call has, such as "audio_hidden_states"."""
    required = [
        item.name for item in inspect.signature(model.forward).parameters.values() if item.default is item.empty
    ]
    return [name for name in required if name.endswith("_hidden_states") and "encoder" not in name]


def _channels(config: Any) -> tuple[int, int] | None:
    """The channels of a denoiser's sample and of its output, where its configuration shows that they differ.

    Some configurations give the channels of a patch for one and those of a pixel for the other.
    """
    given, returned = (getattr(config, f"{side}_channels", None) for side in ("in", "out"))
    if not isinstance(given, int):
        return None
    if getattr(config, "learn_sigma", False):  # the mean and the variance
        return given, 2 * given
    patch = getattr(config, "patch_size", None) or 1
    areas = [math.prod(patch)] if isinstance(patch, (list, tuple)) else [patch**power for power in range(4)]
    if not isinstance(returned, int) or any(given == returned * area for area in (1, *areas)):
        return None
    return given, returned
