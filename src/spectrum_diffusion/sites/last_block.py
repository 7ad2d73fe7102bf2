"""The site of the last block: the whole stack of blocks is skipped."""

from __future__ import annotations

from typing import Any

from torch import nn

from .blocks import BlockSite, Roles
from .denoisers import last_block_row, resolve


class LastBlock(BlockSite):
    """The feature is the input of the tails."""

    name = "last_block"
    keeps = "the tokens after the last block"

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        blocks, tails = resolve(model, last_block_row(model))
        return {"block": blocks, "tail": tails}
