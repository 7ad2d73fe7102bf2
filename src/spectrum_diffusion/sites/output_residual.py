"""The site of EasyCache: the feature is what the denoiser adds to its sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ..core.calls import Arguments
from ..core.history import Feature
from ..errors import UnsupportedModelError
from .output import Output


class OutputResidual(Output):
    """Works with any denoiser whose outputs have the shapes of its samples."""

    name = "output_residual"
    keeps = "what the denoiser adds to its sample"

    def feature_of(self, call: Arguments, outputs: Feature) -> Feature:
        samples = call.samples
        returned, given = ([tuple(tensor.shape) for tensor in tensors] for tensors in (outputs, samples))
        if returned != given:
            raise UnsupportedModelError(
                f"{type(call.module).__name__} takes samples of the shapes {given} but returns {returned}, so their "
                'difference is undefined: use spectrum, taylor or reuse, which also work with site="output"'
            )
        return tuple(output - sample for output, sample in zip(outputs, samples, strict=True))

    def output_of(self, call: Arguments, feature: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        return (value + sample for value, sample in zip(feature, call.samples, strict=True))
