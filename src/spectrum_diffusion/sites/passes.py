"""Passes, which answer the calls of a site's modules: recording, skipping, deciding, counting work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..core.calls import Arguments
from ..core.site import Choose
from ..errors import UnsupportedModelError
from .frame import Frame


class Base(NamedTuple):
    """The image tokens that are subtracted from the feature, which makes it a residual.

    Attributes:
        kind: the tokens "before" or "after" the first block.
        image_place: place of the image tokens in the pair that a block may return.
    """

    kind: str
    image_place: int


class Based:
    """What recording and skipping share: the image tokens that are subtracted from the feature and added again.

    Args:
        base: which tokens these are; None if the feature is not a residual.
    """

    def __init__(self, base: Base | None) -> None:
        self._which = base
        self._base: torch.Tensor | None = None

    def first(self, call: Arguments) -> Any:
        if self._which is None or self._base is not None:
            return self.block(call)
        if self._which.kind == "before":
            self._base = tokens_in(call).clone()  # the model may write into them later
            return self.block(call)
        output = call.proceed(*call.args, **call.kwargs)
        self._base = tokens_out(call, output, self._which.image_place).clone()
        return output

    def block(self, call: Arguments) -> Any:
        raise NotImplementedError

    def embedder(self, call: Arguments) -> Any:
        return call.proceed(*call.args, **call.kwargs)


class Recording(Based):
    """A pass through an evaluated denoiser: records the output structures of the outermost modules, and the feature."""

    def __init__(self, base: Base | None = None) -> None:
        super().__init__(base)
        self.feature: list[torch.Tensor] = []
        self.structures: list[Any] = []
        self._inside = False

    def block(self, call: Arguments) -> Any:
        if self._inside:  # a block inside a block is skipped with it
            return call.proceed(*call.args, **call.kwargs)
        output = self._proceed(call)
        leaves, spec = pytree.tree_flatten(output)
        self.structures.append(([_Meta.of(leaf) for leaf in leaves], spec))
        return output

    def module(self, call: Arguments) -> Any:
        if self._inside:
            return call.proceed(*call.args, **call.kwargs)
        output = self._proceed(call)
        tensors, frame = Frame.of(call, output)
        self.feature += [tensor.clone() for tensor in tensors]  # a block may write into them later
        self.structures.append(frame)
        return output

    def tail(self, call: Arguments) -> Any:
        value = call.first
        self.feature.append(value if self._base is None else _difference(value, self._base))
        return call.proceed(*call.args, **call.kwargs)

    def _proceed(self, call: Arguments) -> Any:
        self._inside = True
        try:
            return call.proceed(*call.args, **call.kwargs)
        finally:
            self._inside = False


class Skipping(Based):
    """A pass through a skipped denoiser: blocks return stand-ins, modules and tails get the forecast."""

    def __init__(self, feature: Iterable[torch.Tensor], structures: list[Any], base: Base | None = None) -> None:
        super().__init__(base)
        self._feature = iter(feature)
        self._structures = iter(structures)
        self._last: Any = None

    def block(self, call: Arguments) -> Any:
        leaves, spec = self._structure()
        return pytree.tree_unflatten([_stand_in(leaf, call) for leaf in leaves], spec)

    def module(self, call: Arguments) -> Any:
        frame: Frame = self._structure()
        return frame.filled(call, self._feature)

    def tail(self, call: Arguments) -> Any:
        value = next(self._feature)
        return call.proceed_with(value if self._base is None else self._base + value)

    def advance(self, count: int) -> Skipping:
        """Skip the structures of ``count`` blocks that ran already."""
        for _ in range(count):
            self._structure()
        return self

    def _structure(self) -> Any:
        # A block that runs more often than when it was recorded returns its last output again (recycling).
        self._last = next(self._structures, self._last)
        return self._last


class Deciding:
    """A pass that records until the first block gives its signal, and then continues to record, or skips."""

    def __init__(self, signal: Signal, choose: Choose, structures: Any, base: Base | None) -> None:
        self._signal, self._choose, self._structures, self._base = signal, choose, structures, base
        self.record: Recording | None = Recording(base)  # None once the call is skipped
        self._current: Recording | Skipping = self.record
        self._embedding: torch.Tensor | None = None
        self._decided = False

    def embedder(self, call: Arguments) -> Any:
        output = call.proceed(*call.args, **call.kwargs)
        if isinstance(output, tuple):  # otherwise it embeds only a condition, which never changes (ACE-Step)
            self._embedding = output[0]  # (B, D)
        return output

    def first(self, call: Arguments) -> Any:
        if self._decided:  # a first block that runs more than once in a call (recycling)
            return self._current.first(call)
        assert self.record is not None
        self._decided, before = True, len(self.record.structures)
        value, output = (self._embedding, None) if self._embedding is not None else self._signal(call)
        if (feature := self._choose(value)) is not None:
            self.record, self._current = None, Skipping(feature, self._structures, self._base).advance(before)
        if output is not None:  # the block ran already
            call = replace(call, proceed=lambda *args, **kwargs: output)
        return self._current.first(call)

    def block(self, call: Arguments) -> Any:
        return self._current.block(call)

    def tail(self, call: Arguments) -> Any:
        return self._current.tail(call)


class WorkCounter:
    """A pass that lets everything run and counts the multiplications of the layers with weights."""

    def __init__(self) -> None:
        self.work = 0

    def layer(self, call: Arguments) -> Any:
        layer: Any = call.module
        sample = call.args[0] if call.args else next(iter(call.kwargs.values()))
        self.work += sample.numel() * layer.weight.shape[0]
        return call.proceed(*call.args, **call.kwargs)


Signal = Callable[[Arguments], tuple[torch.Tensor, Any]]
"""From the call of the first block: the signal, and the block's output if computing the signal ran the block."""


def modulated_input(call: Arguments) -> tuple[torch.Tensor, None]:
    """The image tokens as the first block's adaptive norm modulates them (TeaCache), (B, N, D).

    If the block has no such norm, or the norm needs further arguments, the signal is the unmodulated image tokens.
    """
    norm, tokens, temb = getattr(call.module, "norm1", None), tokens_in(call), call.named("temb")
    if norm is None or temb is None or not _takes_embedding_alone(norm):
        return tokens, None
    value = norm(tokens, emb=temb)
    return (value[0] if isinstance(value, tuple) else value), None


def _takes_embedding_alone(norm: nn.Module) -> bool:
    _, *others = inspect.signature(norm.forward).parameters.values()
    needed = {parameter.name for parameter in others if parameter.default is parameter.empty}
    # The modulation of a pruned norm (Chroma) is a slice of the embedding that only its block knows.
    return needed <= {"emb"} <= {parameter.name for parameter in others} and "Pruned" not in type(norm).__name__


def first_residual(call: Arguments, image_place: int) -> tuple[torch.Tensor, Any]:
    """What the first block adds to the image tokens (first-block cache), (B, N, D), and the output of the block."""
    before = tokens_in(call).clone()
    output = call.proceed(*call.args, **call.kwargs)
    return tokens_out(call, output, image_place) - before, output


def tokens_in(call: Arguments) -> torch.Tensor:
    """The image tokens that a block takes, (B, N, D)."""
    named = call.named("hidden_states")
    return named if isinstance(named, torch.Tensor) else call.first


def tokens_out(call: Arguments, output: Any, image_place: int) -> torch.Tensor:
    """The image tokens that a block returns: the output with the shape of its input, or that of a pair at a place."""
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    fitting = [tensor for tensor in tensors if tensor.shape == tokens_in(call).shape]
    if not fitting:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} returns its tokens in another shape than it takes them, so they have no "
            "residual: use a method that needs none, such as spectrum, taylor or reuse"
        )
    return fitting[image_place] if len(fitting) == 2 == len(tensors) else fitting[0]


def _difference(value: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    if value.shape != base.shape:
        raise UnsupportedModelError(
            f"the tokens enter the final norm as {tuple(value.shape)} but the first block as {tuple(base.shape)}, so "
            "they have no residual: use a method that needs none, such as spectrum, taylor or reuse"
        )
    return value - base


class _Meta(NamedTuple):
    """What a stand-in for a tensor must have."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, leaf: Any) -> Any:
        return cls(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _stand_in(leaf: Any, call: Arguments) -> Any:
    if not isinstance(leaf, _Meta):
        return leaf
    for tensor in call.tensors.values():  # an argument of the same kind costs no memory
        if _Meta.of(tensor) == leaf:
            return tensor
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
