"""The site of DeepCache: the deep part of a U-Net, inside one of its skip connections."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .blocks import BlockSite, Roles
from .denoisers import row_for, unwrap
from .row import UNetRoles


class Deep(BlockSite):
    """The feature is the output of the deep part, which a skipped step leaves out. Option: the skip connection."""

    name = "deep"
    keeps = "the output of the deep part of the U-Net"
    inside_blocks = True
    copies = True

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        last, before = deep_modules(model, *options)
        return {"module": [last], "block": before}


def deep_modules(model: nn.Module, branch: int) -> tuple[nn.Module, list[nn.Module]]:
    """The modules inside skip connection ``branch`` of a U-Net (DeepCache): the last to run, and all others.

    Raises:
        UnsupportedModelError: the model is not a U-Net of down, mid and up blocks, or ``branch`` is too deep.
    """
    row, unet = row_for(model), unwrap(model)
    names = row.unet if row is not None else UNetRoles()
    downs, ups = (list(getattr(unet, name, None) or ()) for name in (names.down, names.up))
    if not downs or not ups or not all(hasattr(block, names.layers[0]) for block in (*downs, *ups)):
        raise UnsupportedModelError(
            f"deepcache cannot run on {type(unet).__name__}, which is not a U-Net of blocks with {names.layers[0]}, "
            "such as UNet2DConditionModel: use spectrum, taylor or reuse, which work with any denoiser, or name the "
            "parts of your U-Net with register_denoiser(…, unet=UNetRoles(…))"
        )
    connections = [(b, layer) for b, block in enumerate(downs) for layer in range(len(_layers(block, names)))]
    if branch >= len(connections):
        raise UnsupportedModelError(
            f"branch={branch} is too deep, because {type(unet).__name__} has {len(connections)} skip connections: pass "
            f"branch=0 … {len(connections) - 1}"
        )
    depth, layer = connections[branch]
    inner_down = [*chain(*_layers(downs[depth], names)[layer:]), *downs[depth + 1 :]] if layer else downs[depth:]
    meeting = len(ups) - 1 - depth
    split = max(0, len(getattr(ups[meeting], names.layers[0])) - 1 - layer)
    inner_up = [*ups[:meeting], *chain(*_layers(ups[meeting], names)[:split])]
    middle = [middle] if (middle := getattr(unet, names.middle, None)) is not None else []
    deep = [*inner_down, *middle, *inner_up]
    return deep[-1], deep[:-1]


def _layers(block: nn.Module, names: UNetRoles) -> list[list[nn.Module]]:
    """Layers of a U-Net block: each a convolution and its attention; last, the change of resolution."""
    count = len(getattr(block, names.layers[0]))
    lists = [parts for name in names.layers if isinstance(parts := getattr(block, name, None), nn.ModuleList)]
    layers = [[parts[i] for parts in lists if i < len(parts)] for i in range(count)]
    samplers = getattr(block, names.samplers, None)
    return [*layers, list(samplers)] if samplers else layers
