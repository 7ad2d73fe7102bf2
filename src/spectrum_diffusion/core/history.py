"""The evaluated features of one branch of one run, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from .forecast import Weights

Feature = tuple[torch.Tensor, ...]
"""What is forecast: the input of each tail, or each floating tensor of a denoiser's output; mostly one tensor."""

CPU_CHUNK = 1 << 18
"""Elements summed at a time on a CPU: an accumulator of 1 MiB stays in the cache while K features stream by."""


class History:
    """Features of the evaluated steps, oldest first; with a ``window`` only the latest are kept.

    Args:
        window: how many features the forecaster can use; None keeps all (at most the schedule's NFE).
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.steps: list[int] = []
        self.features: list[Feature] = []

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Memory held by the features, in bytes."""
        return sum(tensor.nbytes for feature in self.features for tensor in feature)

    def append(self, step: int, feature: Feature) -> None:
        """Keep a copy of the feature of an evaluated step.

        A copy, since the model may go on to write into the tensor, and CUDA graphs reuse their output buffers.
        """
        self.steps.append(step)
        self.features.append(tuple(tensor.detach().clone() for tensor in feature))
        if self.window is not None and len(self.steps) > self.window:
            del self.steps[0], self.features[0]

    def fits(self, feature: Feature) -> bool:
        """Whether the feature has the shapes of those kept already."""
        return not self.features or [t.shape for t in feature] == [t.shape for t in self.features[-1]]

    def forecast(self, weights: Weights) -> Iterator[torch.Tensor]:
        """``Σ w_k h_k`` for each tensor of the feature in turn, in its dtype; ``weights`` has one a kept step."""
        for tensors in zip(*self.features, strict=True):  # one tensor of all K features
            yield weighted_sum(weights, tensors)

    def clear(self) -> None:
        """Let go of the features, at the end of a run."""
        self.steps.clear()
        self.features.clear()


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor as it is, several as one vector, (N,)."""
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])


def weighted_sum(weights: Iterable[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``Σ w_k x_k`` of K tensors of one shape, accumulated in float32 (float64 for float64) whatever their dtype.

    One accumulator, no temporary of K features: on a CPU chunk by chunk, so that each feature is read once.

    Returns:
        A tensor of the shape, memory order, dtype and device of the first one: with another order of its channels the
        kernels that follow may sum in another order, and no longer agree bit for bit.
    """
    like = tensors[0]
    order = sorted(range(like.dim()), key=like.stride, reverse=True)  # outermost in memory first
    terms = [(float(w), x.permute(order).reshape(-1)) for w, x in zip(weights, tensors, strict=True) if w]  # (F,)
    total = torch.zeros(like.numel(), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    chunk = CPU_CHUNK if like.device.type == "cpu" else max(1, like.numel())
    for start in range(0, like.numel(), chunk):
        part = total[start : start + chunk]  # a view, (C,)
        for w, x in terms:
            part.add_(x[start : start + chunk], alpha=w)
    ordered = total.to(like.dtype).view([like.shape[axis] for axis in order])  # (F,) -> axes in memory order
    return ordered.permute([order.index(axis) for axis in range(like.dim())])  # -> shape of a feature
