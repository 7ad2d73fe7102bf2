"""Base class of the sites of adaptive methods, which read a signal at the first block before they skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.calls import Arguments
from ..core.history import Feature
from ..core.site import Choose
from ..errors import UnsupportedModelError
from .blocks import BlockSite, Roles
from .denoisers import last_block_row, main_blocks, resolve, row_for, unwrap
from .interceptor import Interceptor
from .passes import Base, Deciding


class StackSite(BlockSite):
    """The first block, the other blocks, and the tails. A subclass defines :meth:`signal`."""

    residual: ClassVar[str] = ""
    """The feature is what the blocks add to the image tokens "before" or "after" the first block; "": no residual."""

    def __init__(
        self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
    ) -> None:
        super().__init__(model, options, interceptor)
        self.image_place = last_block_row(model).image_place(first_block(model))
        self.base = Base(self.residual, self.image_place) if self.residual else None

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        first = first_block(model)
        blocks, tails = resolve(model, last_block_row(model))
        return {"first": [first], "block": [block for block in blocks if block is not first], "tail": tails}

    def signal(self, call: Arguments) -> tuple[torch.Tensor, Any]:
        """The signal, from the call of the first block, and the block's output if computing the signal ran it."""
        raise NotImplementedError

    def decide(self, call: Arguments, choose: Choose, structure: Any) -> tuple[Any, Feature | None, Any]:
        with self.passing(Deciding(self.signal, choose, structure, self.base)) as deciding:
            output = call.proceed(*call.args, **call.kwargs)
        if (record := deciding.record) is None:
            return output, None, structure
        return output, tuple(record.feature), record.structures


def first_block(model: nn.Module) -> nn.Module:
    """The first block of the main stack, at which the residual of the whole stack begins.

    Raises:
        UnsupportedModelError: a U-Net, whose blocks change the shape, or a model without a last block.
    """
    row = row_for(model)
    if row is None or not row.blocks:
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} has no known last block{f' ({row.reason})' if row else ''}, so its blocks "
            'have no residual: use easycache, or spectrum, taylor or reuse with site="output"'
        )
    if row.changes_shape:
        raise UnsupportedModelError(
            f"{row.cls} is a U-Net, whose blocks change the shape of the sample, so they have no residual: use "
            "deepcache, or a method that forecasts the last block or the output, such as spectrum, taylor, reuse or "
            "easycache"
        )
    return main_blocks(model)[0]
