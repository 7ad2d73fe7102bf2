"""The site of other packages' caches: it replaces nothing and counts how much of the denoiser runs."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..core.calls import Arguments
from ..core.history import Feature
from .blocks import BlockSite, Roles
from .denoisers import resolve, row_for, unwrap
from .passes import WorkCounter


class Observed(BlockSite):
    """The cache of another package decides. The structure of a call is the work that it did."""

    name = "observed"
    keeps = "nothing"

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        return {"layer": layers_of(model)}

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self.passing(WorkCounter()) as counter:
            output = call.proceed(*call.args, **call.kwargs)
        return output, (), counter.work


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The linear layers and convolutions inside the blocks, whose calls tell how much of a denoiser runs."""
    inner, row = unwrap(model), row_for(model)
    blocks = resolve(model, row)[0] if row is not None and row.blocks else [inner]
    modules = [module for block in blocks for module in block.modules()]
    return [module for module in modules if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
