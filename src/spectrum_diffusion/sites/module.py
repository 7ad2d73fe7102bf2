"""The site of the methods that cache per module (FORA, TaylorSeer): every attention and feed-forward module."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .blocks import BlockSite, Roles
from .denoisers import last_block_row, main_blocks, unwrap


class Modules(BlockSite):
    """The feature is the output of every attention and feed-forward module, before the gate."""

    name = "module"
    keeps = "the output of every attention and feed-forward module"
    inside_blocks = True
    copies = True

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        features, beside = modules_of(model)
        return {"module": features, "block": beside}


def modules_of(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules whose outputs are kept, and those that a fused block runs only for its last projection.

    Kept are the outputs of the attention and feed-forward modules of the main blocks, before the gate. Of a block that
    fuses both, it is the last projection; of a U-Net, the residual convolutions too.

    Raises:
        UnsupportedModelError: no block has such modules, or the model has no last block.
    """
    row = last_block_row(model)
    pairs = [row.computing(block) for block in main_blocks(model)]
    features, beside = ([module for part in parts for module in part] for parts in zip(*pairs, strict=True))
    if not features:
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} has no attention or feed-forward module with a known name: use "
            'site="last_block" or site="output", or name them with register_denoiser(…, modules=(…))'
        )
    return features, beside
