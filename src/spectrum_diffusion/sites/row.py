"""A row of the table of denoisers: what the sites need to know of a class. Rules fill in what a row leaves out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from ..errors import UnsupportedModelError

_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\.\*|\?)?")

# The rules, by the names that diffusers uses.
_PRELIMINARY = ("embedder", "refiner", "fusion", "txt_in", "extractor", "text_", "txt_", "vace_", "transformer_in")
_RESHAPING = ("down_", "up_")
_TEXT_FIRST = ("AuraFlow", "Bria", "Chroma", "Flux", "JointTransformerBlock", "LongCatImage", "Ovis", "QwenImage")
_COMPUTES = re.compile(
    r"(?:.*_)?(?:attn|attention|ffn?|feed_forward|mlp|mhba|transition)(?:\d|_i|_t|_context|_moe_gen)?"
)
_CONVOLVES = re.compile(r"(?:.*_)?(?:resnets|temp_convs|resnets_in|resnets_out|res_blocks)\.\d+")
_FUSED = ("attn", "proj_mlp", "act_mlp", "proj_out")


@dataclass(frozen=True)
class TokenRoles:
    """What the site ``tokens`` needs to know of a denoiser's main blocks.

    Args:
        order: kinds of tokens, "image" and "text", in the order in which a block's attention concatenates them.
        attention: names of a block's children that attend to these tokens.
        cross_attention: names of a block's children that attend to something else.
        feed_forward: names of a block's feed-forward children → the kind of tokens that each takes.
    """

    order: tuple[str, ...]
    attention: tuple[str, ...] = ("attn", "attn1")
    cross_attention: tuple[str, ...] = ("attn2",)
    feed_forward: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"ff": "image", "ffn": "image", "ff_context": "text"}), hash=False
    )


TOKEN_ROLES = {
    "FluxTransformerBlock": TokenRoles(("text", "image")),
    "FluxSingleTransformerBlock": TokenRoles(("text", "image")),
    "HunyuanVideoTransformerBlock": TokenRoles(("image", "text")),
    "HunyuanVideoSingleTransformerBlock": TokenRoles(("image", "text")),
    "JointTransformerBlock": TokenRoles(("image", "text")),
    "WanTransformerBlock": TokenRoles(("image",)),
}
"""Blocks of diffusers with a known order of tokens, by class."""


@dataclass(frozen=True)
class UNetRoles:
    """What the site ``deep`` needs to know of a U-Net.

    Args:
        down, middle, up: attributes that hold the down blocks, the middle block and the up blocks.
        layers: attributes of a block that hold the parts of its layers, in the order in which a layer runs them. The
            first attribute has a part for each layer.
        samplers: attribute of a down block that holds the modules that lower the resolution.
    """

    down: str = "down_blocks"
    middle: str = "mid_block"
    up: str = "up_blocks"
    layers: tuple[str, ...] = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
    samplers: str = "downsamplers"


@dataclass(frozen=True)
class DenoiserRow:
    """What the sites need to know of a denoiser class.

    Paths are attribute names, dotted for nested modules. The module of a path that ends in ``?`` may be absent. A field
    that is None follows from the names that diffusers uses.

    Args:
        cls: name of the class.
        blocks: paths of the modules that a skipped step leaves out, in the order in which they run. Text refiners
            count, because only blocks read their output. A `ModuleList` or `ModuleDict` stands for its members, also a
            nested one. Empty: only the output site works.
        tail: paths of the modules whose first input is the feature; `"name.*"` is every member of a
            container. A denoiser with several outputs has several tails.
        reason: why only site="output" works.
        preliminary: the ``blocks`` that do not process the sample, such as text refiners.
        reshapes: whether the blocks change the shape of the sample, as in a U-Net, so that it has no residual.
        text_first: whether a block that returns text and image tokens returns the text first.
        embedder: path of the module that computes the time embedding, for models whose norms take none (Wan).
        modules: paths inside a main block of the attention and feed-forward modules, before the gate. A block has at
            least one of them.
        fused: names of the modules of a block that computes attention and feed-forward with a common last projection,
            in the order in which they run.
        tokens: what the site ``tokens`` needs; None: by the class of the block.
        unet: what the site ``deep`` needs.

    Raises:
        UnsupportedModelError: blocks without a tail or a tail without blocks, neither and no reason, a malformed
            path, or preliminary blocks that are not among the blocks or are all of them.
    """

    cls: str
    blocks: tuple[str, ...]
    tail: tuple[str, ...]
    reason: str = ""
    preliminary: tuple[str, ...] | None = None
    reshapes: bool | None = None
    text_first: bool | None = None
    embedder: str = "condition_embedder?"
    modules: tuple[str, ...] | None = None
    fused: tuple[str, ...] = _FUSED
    tokens: TokenRoles | None = None
    unet: UNetRoles = UNetRoles()

    def __post_init__(self) -> None:
        paths = (*self.blocks, *self.tail, *(self.preliminary or ()), *(self.modules or ()), *self.fused, self.embedder)
        for path in paths:
            if not _PATH.fullmatch(path):
                raise UnsupportedModelError(
                    f"the row of {self.cls} has the path {path!r}, which is not a path to a module: write an attribute "
                    'name such as "transformer_blocks", a dotted name, or "all_final_layer.*" for all members'
                )
        if bool(self.blocks) != bool(self.tail):
            given, missing = ("blocks", "tail") if self.blocks else ("tail", "blocks")
            raise UnsupportedModelError(
                f"the row of {self.cls} has {given} but no {missing}: pass both for the last-block site, or neither, "
                "with a reason, for the output site only"
            )
        if not self.blocks and not self.reason:
            raise UnsupportedModelError(
                f'the row of {self.cls} has no blocks and no reason: pass a reason why only site="output" works'
            )
        if self.preliminary is not None and self.blocks and not self.main:
            raise UnsupportedModelError(
                f"the row of {self.cls} has only preliminary blocks ({', '.join(self.blocks)}), but some blocks must "
                "process the sample: leave those out of preliminary"
            )
        if strange := set(self.preliminary or ()) - set(self.blocks):
            raise UnsupportedModelError(
                f"the row of {self.cls} has {', '.join(sorted(strange))} in preliminary, but not in its blocks "
                f"({', '.join(self.blocks)}): pass paths of blocks that run before the main stack"
            )

    @property
    def main(self) -> tuple[str, ...]:
        """The paths of the main stack: the blocks that process the sample."""
        if self.preliminary is not None:
            return tuple(path for path in self.blocks if path not in self.preliminary)
        return tuple(path for path in self.blocks if not any(part in path for part in _PRELIMINARY)) or self.blocks

    @property
    def changes_shape(self) -> bool:
        """Whether the blocks change the shape of the sample."""
        return any(path.startswith(_RESHAPING) for path in self.blocks) if self.reshapes is None else self.reshapes

    def image_place(self, block: nn.Module) -> int:
        """Place of the image tokens in the pair (text, image) or (image, text) that a block returns."""
        text_first = type(block).__name__.startswith(_TEXT_FIRST) if self.text_first is None else self.text_first
        return int(text_first)

    def token_roles(self, block: nn.Module) -> TokenRoles | None:
        """The roles of a block's children and the order of its tokens; None if unknown."""
        return self.tokens or TOKEN_ROLES.get(type(block).__name__)

    def computing(self, block: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules of a block whose outputs are kept, and those that a fused block runs only for the last."""
        if self.is_fused(block):
            *beside, last = (block.get_submodule(name) for name in self.fused)
            return [last], beside
        if self.modules is not None:
            paths = {path.removesuffix("?") for path in self.modules}
            return [module for path, module in block.named_modules() if path in paths], []
        return self._by_name(block)

    def is_fused(self, block: nn.Module) -> bool:
        """Whether the block computes attention and feed-forward with a common last projection."""
        return bool(self.fused) and {name for name, _ in block.named_children()} >= set(self.fused)

    def _by_name(self, block: nn.Module, name: str = "") -> tuple[list[nn.Module], list[nn.Module]]:
        features: list[nn.Module] = []
        beside: list[nn.Module] = []
        for child_name, child in block.named_children():
            path = f"{name}.{child_name}".lstrip(".")
            if _COMPUTES.fullmatch(child_name) or _CONVOLVES.fullmatch(path) or type(child).__name__ == "Attention":
                features.append(child)
                continue
            below = self.computing(child) if self.is_fused(child) else self._by_name(child, child_name)
            features += below[0]
            beside += below[1]
        return features, beside
