"""The output site: the denoiser's own output is the feature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..core.calls import Arguments
from ..core.history import Feature, joined
from ..core.site import Choose, Site
from .frame import Frame


class Output(Site):
    """Works with any denoiser. A skipped step runs nothing of it."""

    name = "output"
    keeps = "the denoiser's output"
    skips_root = True

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        output = call.proceed(*call.args, **call.kwargs)
        tensors, frame = Frame.of(call, output)
        return output, self.feature_of(call, tensors), frame

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        frame: Frame = structure
        return frame.filled(call, self.output_of(call, feature))

    def decide(self, call: Arguments, choose: Choose, structure: Any) -> tuple[Any, Feature | None, Any]:
        if (feature := choose(joined(call.samples))) is not None:
            return self.forecast(call, feature, structure), None, structure
        return self.evaluate(call)

    def feature_of(self, call: Arguments, outputs: Feature) -> Feature:
        """The feature of the tensors of an output."""
        return outputs

    def output_of(self, call: Arguments, feature: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The tensors of an output from their feature."""
        return iter(feature)
