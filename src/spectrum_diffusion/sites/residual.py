"""The site of TeaCache and MagCache: what the stack of blocks adds to the image tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.calls import Arguments
from .blocks import Roles
from .denoisers import module_at, row_for, unwrap
from .passes import modulated_input
from .stack import StackSite


class Residual(StackSite):
    """The feature is the last block's output minus the first block's input; the signal is the modulated input."""

    name = "residual"
    keeps = "what the stack of blocks adds to the image tokens"
    copies = True
    residual = "before"

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        return super().roles(model) | {"embedder": time_embedders(model)}

    def signal(self, call: Arguments) -> tuple[torch.Tensor, Any]:
        return modulated_input(call)


def time_embedders(model: nn.Module) -> list[nn.Module]:
    """The module that computes the time embedding, for models whose norms take none (Wan); empty for most models."""
    embedder = module_at(unwrap(model), row, row.embedder) if (row := row_for(model)) is not None else None
    return [embedder] if embedder is not None else []
