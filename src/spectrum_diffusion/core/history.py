"""The evaluated features of one branch of one run, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from .forecast import Weights

Feature = tuple[torch.Tensor, ...]
"""The tensors that are forecast, usually one: the inputs of the tails, or the floating tensors of an output."""

CPU_CHUNK = 1 << 18
"""Elements summed at a time on a CPU: an accumulator of 1 MiB stays in the processor's cache."""


class History:
    """Features of the evaluated steps, oldest first.

    Args:
        window: how many of the latest features are kept; None keeps all, at most one for each evaluation.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.steps: list[int] = []
        self.features: list[Feature] = []
        self.finite: list[torch.Tensor] = []
        """For each tensor of the latest feature which samples were finite, (B,); not read from the device yet."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Memory held by the features, in bytes."""
        return sum(tensor.nbytes for feature in self.features for tensor in feature)

    def make_room(self) -> None:
        """Free the oldest feature if the next one would push it out, so that an evaluation does not find it held."""
        if self.window is not None and len(self) >= self.window:
            del self.steps[0], self.features[0]

    def append(self, step: int, feature: Feature, *, copied: bool = False) -> None:
        """Keep a copy of the feature of an evaluated step.

        A copy, because the model may write into the tensor later, and CUDA graphs reuse their output buffers. A sample
        with values that are not finite would spoil every later forecast: its feature before is kept again instead.

        Args:
            step: the step.
            feature: its feature.
            copied: whether the feature is a copy already.
        """
        before = self.features[-1] if self.features and self.fits(feature) else (None,) * len(feature)
        self.make_room()
        kept = tuple(tensor.detach() if copied else tensor.detach().clone() for tensor in feature)
        self.finite = [keep_finite(tensor, old) for tensor, old in zip(kept, before, strict=True)]
        self.steps.append(step)
        self.features.append(kept)

    def fits(self, feature: Feature) -> bool:
        """Whether the feature has the shapes of the kept ones."""
        return not self.features or [t.shape for t in feature] == [t.shape for t in self.features[-1]]

    def forecast(self, weights: Weights) -> Iterator[torch.Tensor]:
        """``Σ w_k h_k`` for each tensor of the feature in turn, in its dtype.

        Args:
            weights: a weight for each kept step, (K,).
        """
        for tensors in zip(*self.features, strict=True):  # one tensor of all K features
            yield weighted_sum(weights, tensors)

    def clear(self) -> None:
        """Free the features, at the end of a run."""
        self.steps.clear()
        self.features.clear()


def memory_of(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """The storages behind tensors and their sizes in bytes, each once: tensors may share one, and a view keeps it all.

    Storages have an identity on the meta device too, where data pointers are all zero.
    """
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}


def keep_finite(tensor: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Replace each sample of a tensor that is not finite by that of ``before``, in place; without it, zeros.

    Nothing is read from the device, and no mask of the tensor's size is made: a sum shows whether all is finite.

    Returns:
        Which samples were finite, (B,); integers and single numbers are not looked at.
    """
    if not tensor.is_floating_point() or not tensor.dim():
        return torch.ones(1, dtype=torch.bool, device=tensor.device)
    precise = torch.promote_types(tensor.dtype, torch.float32)
    sums = tensor.sum([*range(1, tensor.dim())], dtype=precise) if tensor.dim() > 1 else tensor
    finite = torch.isfinite(sums)  # (B,)
    if before is None or before.dtype != tensor.dtype or before.device != tensor.device:
        tensor.nan_to_num_(0.0, 0.0, 0.0)
    else:
        torch.where(finite.view(-1, *[1] * (tensor.dim() - 1)), tensor, before, out=tensor)
    return finite


def over_batch(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values for each sample, (B,), shaped to multiply a tensor (B, …)."""
    return values.view(-1, *[1] * (like.dim() - 1)) if like.dim() else values[0]


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A single tensor unchanged; several tensors as one vector, (N,)."""
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])


def weighted_sum(weights: Iterable[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``Σ w_k x_k`` of K tensors of one shape, accumulated in float32, or in float64 for float64 tensors.

    It needs one accumulator and never stacks the K tensors. A CPU sums chunk by chunk and reads each tensor once.

    Returns:
        A tensor with the shape, memory order, dtype and device of the first one. With another memory order, later
        kernels could sum in another order and no longer agree bit for bit.
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
