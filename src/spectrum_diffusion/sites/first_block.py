"""The site of first-block caches: the first block always runs, and what the others add is the feature."""

from __future__ import annotations

from typing import Any

import torch

from ..core.calls import Arguments
from .passes import first_residual
from .stack import StackSite


class FirstBlock(StackSite):
    """The feature is the tokens after the last block minus those after the first, whose residual is the signal."""

    name = "first_block"
    keeps = "what the blocks after the first add to the image tokens"
    copies = True
    residual = "after"

    def signal(self, call: Arguments) -> tuple[torch.Tensor, Any]:
        return first_residual(call, self.image_place)
