"""The output site: the denoiser's own output is the feature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..core.calls import Arguments
from ..core.history import Feature, joined
from ..core.run import Judge
from ..errors import UnsupportedModelError
from .passes import is_floating


class Output:
    """The denoiser's own output is the feature: for any denoiser; on a skipped step nothing of it runs.

    Args:
        residual: the feature is what the denoiser adds to its sample (EasyCache), not the output itself.
    """

    def __init__(self, *, residual: bool = False) -> None:
        self.name = "output"
        self._residual = residual

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        output = call.proceed(*call.args, **call.kwargs)
        leaves, spec = pytree.tree_flatten(output)
        feature = tuple(leaf for leaf in leaves if is_floating(leaf))
        rest = [None if is_floating(leaf) else leaf for leaf in leaves]
        if self._residual:
            feature = tuple(value - sample for value, sample in zip(feature, samples_of(call, feature), strict=True))
        return output, feature, (rest, spec)

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        rest, spec = structure
        values = iter(feature)
        if self._residual:
            values = (value + sample for value, sample in zip(values, samples_of(call), strict=True))
        return pytree.tree_unflatten([next(values) if leaf is None else leaf for leaf in rest], spec)

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        if (feature := judge(joined(samples_of(call)))) is not None:
            return self.forecast(call, feature, structure), None, structure
        return self.evaluate(call)


def samples_of(call: Arguments, outputs: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The noisy sample that a denoiser's call is given, (B, …), or the list of them that some models take.

    Raises:
        UnsupportedModelError: they are not of the shapes of the ``outputs``.
    """
    named = (call.named(name) for name in ("hidden_states", "sample", "x"))
    given = next((value for value in named if value is not None), None)
    if given is None:
        given = next(value for value in call.tensors.values() if value.is_floating_point())
    samples = list(given) if isinstance(given, (list, tuple)) else [given]
    of_outputs, of_samples = ([tuple(one.shape) for one in many] for many in (outputs or samples, samples))
    if of_outputs != of_samples:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} is given samples of the shapes {of_samples} but returns {of_outputs}, so "
            'their difference can\'t be kept: use spectrum, taylor or reuse, which can also be at site="output"'
        )
    return samples
