"""Operations on tensors of which some have values and some, on the meta device, have only a shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Mixed(TorchDispatchMode):
    """Within the block, tensors with values and tensors without may meet in an operation.

    The result has values where all arguments have, so that a model with weights on the meta device can still read its
    masks and lengths.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not any(leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)):
            return func(*args, **kwargs)
        if func in _INDEXING:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        if kwargs.get("device") is not None:  # moved to a device with values, of which there are none
            kwargs["device"] = torch.device("meta")
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def _places(index: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """An index, or the places that a mask selects: their number needs the values of the mask."""
    if index is None or index.is_meta or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)


@contextmanager
def autocast_of_meta() -> Iterator[None]:
    """Let models open an autocast for the device of a tensor on the meta device, for which PyTorch has none."""
    original: Any = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type == "meta" else device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]
