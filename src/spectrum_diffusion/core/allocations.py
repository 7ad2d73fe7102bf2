"""Memory that PyTorch allocates, counted on any device: a CPU has no such counter, and the meta device no memory."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that operations make within the block, until they are freed.

    Scratch memory within a kernel is not seen. Every operation becomes slower, so nothing is timed meanwhile.

    Attributes:
        live: bytes of the storages that exist.
        peak: the most of them at any time; it may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs)):  # arguments may be older than the block
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, 0)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, leaf.untyped_storage().nbytes())
        return result

    def reach(self, nbytes: int) -> None:
        """Count memory beyond what is live now that is freed at once."""
        self.peak = max(self.peak, self.live + nbytes)

    def _add(self, tensor: torch.Tensor, nbytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def freed(_: Any) -> None:
            self.live -= nbytes
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
