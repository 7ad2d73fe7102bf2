"""The table of denoisers: which modules of a class are its blocks, and which module reads the last feature.

On a step that is skipped the blocks are left out and the tail is fed the forecast feature; all else of the
model (embeddings, modulation, final norm and projection) runs as always. A class of diffusers is one row
here, a class of one's own is one call of `register_denoiser`. A row without blocks has the output site only,
and says why.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from ..errors import UnsupportedModelError

_WAY_OUT = 'use site="output", or register_denoiser with the right names.'
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\.\*|\?)?")


@dataclass(frozen=True)
class DenoiserRow:
    """Where the last block's feature of a denoiser class is read and replaced.

    Paths are attribute names, dotted where a module lies deeper; one that ends in `?` may be absent.

    Args:
        cls: name of the class.
        blocks: paths of what a skipped step leaves out, in the order in which it runs; refiners of the text
            too, as only blocks read what they make. A `ModuleList` or `ModuleDict`, nested ones too, stands
            for its members. Empty: the output site only.
        tail: paths of the modules whose first input is the feature; `"name.*"` is every member of a
            container. Several, where a denoiser has several outputs.
        reason: why there is the output site only.

    Raises:
        UnsupportedModelError: blocks without a tail or a tail without blocks, neither and no reason, or a
            path that is none.
    """

    cls: str
    blocks: tuple[str, ...]
    tail: tuple[str, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        for path in (*self.blocks, *self.tail):
            if not _PATH.fullmatch(path):
                raise UnsupportedModelError(
                    f"The row of {self.cls} has the path {path!r}, which names no module: write an attribute "
                    'name such as "transformer_blocks", a dotted one, or "all_final_layer.*" for all members.'
                )
        if bool(self.blocks) != bool(self.tail):
            given, missing = ("blocks", "tail") if self.blocks else ("tail", "blocks")
            raise UnsupportedModelError(
                f"The row of {self.cls} has {given} but no {missing}: name both for the last-block site, "
                "or neither, with a reason, for the output site only."
            )
        if not self.blocks and not self.reason:
            raise UnsupportedModelError(
                f"The row of {self.cls} has no blocks and no reason: say why only the output site can be had."
            )


# The columns: blocks in the order they run, tail, classes.
# fmt: off
_LAST_BLOCK = (
    ("transformer_blocks single_transformer_blocks", "norm_out",
     "BriaFiboTransformer2DModel BriaTransformer2DModel ChromaTransformer2DModel Flux2Transformer2DModel "
     "FluxTransformer2DModel LongCatImageTransformer2DModel MotifVideoTransformer3DModel "
     "OvisImageTransformer2DModel"),
    ("context_embedder transformer_blocks single_transformer_blocks", "norm_out",
     "HunyuanImageTransformer2DModel HunyuanVideoFramepackTransformer3DModel HunyuanVideoTransformer3DModel"),
    ("context_embedder transformer_blocks", "norm_out", "HunyuanVideo15Transformer3DModel"),
    ("token_refiner transformer_blocks", "norm_out", "MiniMaxH3Transformer3DModel"),
    ("text_fusion txt_in transformer_blocks", "final_layer", "Krea2Transformer2DModel"),
    ("transformer_blocks", "norm_out",
     "AllegroTransformer3DModel CogView3PlusTransformer2DModel CogView4Transformer2DModel "
     "CosmosTransformer3DModel DiTTransformer2DModel GlmImageTransformer2DModel "
     "LTXVideoTransformer3DModel MochiTransformer3DModel NucleusMoEImageTransformer2DModel "
     "PixArtTransformer2DModel PriorTransformer "
     "QwenImage21Transformer2DModel QwenImageTransformer2DModel SD3Transformer2DModel "
     "SanaTransformer2DModel SanaVideoTransformer3DModel SanaWMLTX2RefinerTransformer3DModel"),
    ("transformer_blocks", "norm_final", "CogVideoXTransformer3DModel EasyAnimateTransformer3DModel"),
    ("transformer_blocks", "proj_out",
     "DreamLiteTransformer2DModel MiniMaxMusic3Transformer1DModel StableAudio3DiTModel StableAudioDiTModel "
     "TransformerTemporalModel"),
    ("transformer_blocks", "norm_out audio_norm_out", "LTX2VideoTransformer3DModel"),
    ("local_facial_extractor? transformer_blocks perceiver_cross_attention?", "norm_final",
     "ConsisIDTransformer3DModel"),
    ("transformer_blocks temporal_transformer_blocks", "norm_out", "LatteTransformer3DModel"),
    ("joint_transformer_blocks single_transformer_blocks", "norm_out", "AuraFlowTransformer2DModel"),
    ("txt_mode_blocks mode_blocks single_transformer_blocks", "norm_out", "Flux3Transformer2DModel"),
    ("double_stream_blocks single_stream_blocks", "final_layer", "HiDreamImageTransformer2DModel"),
    ("double_blocks", "norm_out", "JoyImageEditPlusTransformer3DModel JoyImageEditTransformer3DModel"),
    ("text_transformer_blocks visual_transformer_blocks", "out_layer", "Kandinsky5Transformer3DModel"),
    ("video_text_transformer_blocks audio_text_transformer_blocks visual_transformer_blocks",
     "out_layer audio_out_layer", "Kandinsky6Transformer3DModel"),
    ("visual_transformer_blocks", "out_layer", "Kandinsky6SRTransformer3DModel"),
    ("blocks", "norm_out",
     "AnyFlowFARTransformer3DModel AnyFlowTransformer3DModel ChronoEditTransformer3DModel "
     "HeliosTransformer3DModel HunyuanDiT2DModel LongCatAudioDiTTransformer SkyReelsV2Transformer3DModel "
     "WanTransformer3DModel"),
    ("blocks", "final_layer", "PRXTransformer2DModel SanaWMTransformer3DModel"),
    ("blocks", "head", "WanAnimate2Transformer3DModel"),
    ("blocks face_adapter", "norm_out", "WanAnimateTransformer3DModel"),
    ("vace_blocks blocks", "norm_out", "WanVACETransformer3DModel"),
    ("layers", "norm_out", "AceStepTransformer1DModel LuminaNextDiT2DModel"),
    ("layers", "norm", "OmniGenTransformer2DModel"),
    ("layers", "norm_moe_gen", "Cosmos3OmniTransformer"),
    ("layers", "final_norm", "ErnieImageTransformer2DModel"),
    ("layers", "final_layer", "Ideogram4Transformer2DModel"),
    ("noise_refiner perceiver layers", "final_layer", "BriaFibo2Transformer2DModel"),
    ("context_refiner noise_refiner layers", "norm_out", "Lumina2Transformer2DModel"),
    ("noise_refiner context_refiner siglip_refiner? layers", "all_final_layer.*", "ZImageTransformer2DModel"),
    ("decoders", "decoder_norm", "T5FilmDecoder"),
    ("transformer_layers pair_update_layers",
     "ca_linear local_latents_linear sequence_readout insertion_q_proj insertion_k_proj",
     "RFD4ProteinaTransformer"),
    ("transformer.transformer_in_blocks transformer.transformer_mid_block transformer.transformer_out_blocks",
     "transformer.norm_out", "UniDiffuserModel"),
    ("down_block transformer_layers up_block", "mlm_layer", "UVit2DModel"),
    ("down_blocks mid_block up_blocks", "conv_norm_out",
     "AudioLDM2UNet2DConditionModel DreamLiteUNetModel UNet2DConditionModel UNet2DModel UNetMotionModel "
     "UNetSpatioTemporalConditionModel"),
    ("transformer_in down_blocks mid_block up_blocks", "conv_norm_out", "I2VGenXLUNet UNet3DConditionModel"),
    ("down_blocks up_blocks", "conv_norm_out", "Kandinsky3UNet"),
    ("down_blocks mid_block up_blocks", "base_conv_norm_out", "UNetControlNetXSModel"),
    ("down_blocks mid_block up_blocks", "out_block", "UNet1DModel"),
    ("down_downscalers down_blocks down_repeat_mappers up_blocks up_repeat_mappers up_upscalers", "clf",
     "StableCascadeUNet"),
)
# fmt: on

DENOISERS: dict[str, DenoiserRow] = {
    cls: DenoiserRow(cls, tuple(blocks.split()), tuple(tail.split()))
    for blocks, tail, classes in _LAST_BLOCK
    for cls in classes.split()
}

# Configurations of a class that its row does not hold for: a test of the model, and the reason if it is true.
_EXCEPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "UNet2DModel": (
        lambda model: any(hasattr(block, "skip_conv") for block in model.up_blocks),
        "its skip blocks add a second sample to the output, after the tail",
    ),
}

_registered: dict[str, DenoiserRow] = {}


def register_denoiser(
    cls: type | str, *, blocks: str | Iterable[str] = (), tail: str | Iterable[str] = (), reason: str = ""
) -> DenoiserRow:
    """Add a row for a denoiser class, or replace the one it has.

    Args:
        cls: the class, or its name; subclasses use the row too.
        blocks, tail, reason: as in `DenoiserRow`; a single path may be given as it is.

    Raises:
        UnsupportedModelError: the row can't be, see `DenoiserRow`, or `cls` is neither a class nor a name.
    """
    name = cls.__name__ if isinstance(cls, type) else cls
    if not isinstance(name, str) or not name.isidentifier():
        raise UnsupportedModelError(
            f"register_denoiser was given {cls!r}: give the denoiser's class or its name, not an instance."
        )
    row = DenoiserRow(name, _paths(name, "blocks", blocks), _paths(name, "tail", tail), reason)
    _registered[name] = row
    return row


def _paths(cls: str, what: str, value: Any) -> tuple[str, ...]:
    paths = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for path in paths:
        if not isinstance(path, str):
            raise UnsupportedModelError(
                f"The row of {cls} has {path!r} in its {what}: give attribute names, not modules."
            )
    return paths


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a `torch.compile`d one."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def identity(model: nn.Module) -> str:
    """By what calibrations know a denoiser: class, number of blocks and width, "FluxTransformer2DModel-57x3072".

    One that is given more channels than it returns (image-to-video, filling in) bears their number too:
    "WanTransformer3DModel-40x5120-in36".
    """
    row, inner = row_for(model), unwrap(model)
    count = len(main_blocks(model)) if row is not None and row.blocks else 0
    config = getattr(inner, "config", {})
    width = _width(config)
    taken, returned = config.get("in_channels"), config.get("out_channels")
    wider = f"-in{taken}" if taken and returned and taken != returned else ""
    return f"{type(inner).__name__}-{count}{f'x{width}' if width else ''}{wider}"


def _width(config: Mapping[str, Any]) -> int:
    """Channels of a token inside the blocks, or of a U-Net's deepest level; 0 where no configuration tells."""
    if levels := config.get("block_out_channels"):
        return int(max(levels)) if isinstance(levels, Iterable) else int(levels)
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    several = heads * size if isinstance(heads, int) and isinstance(size, int) else 0
    return several or config.get("hidden_size") or config.get("dim") or 0


def row_for(model: nn.Module) -> DenoiserRow | None:
    """The row of a model, by the name of its class or the nearest base class that has one; None if none has.

    A registered row wins over the built-in one of the same name. Where this model's configuration lacks what
    a built-in row needs, the row that comes back has the output site only, and the reason.
    """
    model = unwrap(model)
    for cls in type(model).__mro__:
        if cls.__name__ in _registered:
            return _registered[cls.__name__]
        if cls.__name__ in DENOISERS:
            return _fitted(DENOISERS[cls.__name__], model)
    return None


def _fitted(row: DenoiserRow, model: nn.Module) -> DenoiserRow:
    absent = [path for path in row.tail if _attribute(model, path.removesuffix(".*")) is None]
    is_exception, reason = _EXCEPTIONS.get(row.cls, (lambda _: False, ""))
    if len(absent) == len(row.tail):
        reason = f"this configuration has no {' and no '.join(absent)} after its blocks"
    elif not is_exception(model):
        return row
    return DenoiserRow(row.cls, (), (), reason)


def resolve(model: nn.Module, row: DenoiserRow) -> tuple[list[nn.Module], list[nn.Module]]:
    """The blocks, in the order of the row, and the tails of a model; both empty for the output site only.

    Raises:
        UnsupportedModelError: the model lacks a module that the row names.
    """
    model = unwrap(model)
    blocks = [block for path in row.blocks for block in _members(_module(model, row, path))]
    tails = [tail for path in row.tail for tail in _tails(model, row, path)]
    for what, found in (("blocks", blocks), ("tail", tails)):
        if row.blocks and not found:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no module under the {what} of its row, "
                f"{', '.join(getattr(row, what))}: {_WAY_OUT}"
            )
    return blocks, tails


def _tails(model: nn.Module, row: DenoiserRow, path: str) -> list[nn.Module]:
    module = _module(model, row, path.removesuffix(".*"))
    members = list(_members(module))
    if not path.endswith(".*") and members not in ([], [module]):
        raise UnsupportedModelError(
            f'The tail {path!r} of {row.cls} is a container: write "{path}.*" for every member of it.'
        )
    return members


def _members(module: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _members(child)
    elif module is not None:
        yield module


def _module(model: nn.Module, row: DenoiserRow, path: str) -> nn.Module | None:
    """The module at a path; None where the model has set it so, or lacks what may be absent."""
    missing = object()
    module = _attribute(model, path.removesuffix("?"), missing)
    if module is missing and path.endswith("?"):
        return None
    if module is not None and not isinstance(module, nn.Module):
        has = ", ".join(name for name, _ in model.named_children())
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {path!r}, which the row of {row.cls} names. "
            f"It has: {has}. The way out: {_WAY_OUT}"
        )
    return module


def _attribute(model: nn.Module, path: str, default: Any = None) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name, default)
        if value is default:
            break
    return value


def last_block_row(model: nn.Module) -> DenoiserRow:
    """The model's row of the table, if it has a last block; else an error that names the ways out."""
    row, cls = row_for(model), type(model).__name__
    if row is None:
        raise UnsupportedModelError(
            f'{cls} is in no row of the table of denoisers, so its last block is not known: use site="output", which '
            f"works for any denoiser, or add a row with register_denoiser({cls}, blocks=(…), tail=(…))"
        )
    if not row.blocks:
        raise UnsupportedModelError(f'{cls} has no last-block site ({row.reason}): use site="output"')
    return row


PRELIMINARY = ("embedder", "refiner", "fusion", "txt_in", "extractor", "text_", "txt_", "vace_", "transformer_in")
"""Parts of the names of what runs before the main stack of blocks."""


def main_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks through which the sample goes, without refiners of the text and the like.

    Raises:
        UnsupportedModelError: the model has no last block.
    """
    row = last_block_row(model)
    paths = [path for path in row.blocks if not any(part in path for part in PRELIMINARY)]
    inner = unwrap(model)
    return [block for path in paths for block in _members(_module(inner, row, path))]


def first_block(model: nn.Module) -> nn.Module:
    """The first block of the main stack, at which the residual of the whole stack begins.

    Raises:
        UnsupportedModelError: a U-Net, whose blocks change the shape, or a model without a last block.
    """
    row = row_for(model)
    if row is None or not row.blocks:
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} has no last block that is known"
            f"{f' ({row.reason})' if row else ''}, so what its blocks add can't be kept: use easycache, or spectrum, "
            'taylor or reuse with site="output"'
        )
    if any(path.startswith(("down_", "up_")) for path in row.blocks):
        raise UnsupportedModelError(
            f"{row.cls} is a U-Net: what its blocks add can't be kept, as they change the shape. Use deepcache, or a "
            "method that forecasts the last block or the output, such as spectrum, taylor, reuse or easycache"
        )
    return main_blocks(model)[0]


def time_embedders(model: nn.Module) -> list[nn.Module]:
    """What makes the time embedding by which the blocks are modulated, where their norms take none (Wan)."""
    embedder = getattr(unwrap(model), "condition_embedder", None)
    return [embedder] if isinstance(embedder, nn.Module) else []


_COMPUTES = re.compile(
    r"(?:.*_)?(?:attn|attention|ffn?|feed_forward|mlp|mhba|transition)(?:\d|_i|_t|_context|_moe_gen)?"
)
_FUSED = {"attn", "proj_mlp", "act_mlp", "proj_out"}
_CONVOLVES = re.compile(r"(?:.*_)?(?:resnets|temp_convs|resnets_in|resnets_out|res_blocks)\.\d+")


def modules_of(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """What the methods that cache per module keep the output of, and what they leave out beside it.

    Attention and feed-forward modules of the main blocks, before the gate; of a block that fuses both, its
    last projection; of a U-Net also the residual convolutions. Found by the names that diffusers gives them.

    Raises:
        UnsupportedModelError: no block has such modules, or the model has no last block.
    """
    features: list[nn.Module] = []
    skipped: list[nn.Module] = []
    for block in main_blocks(model):
        _collect(block, features, skipped)
    if not features:
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} has no attention or feed-forward module that is known by its name, so "
            'nothing can be kept per module: use site="last_block" or site="output"'
        )
    return features, skipped


def _collect(block: nn.Module, features: list[nn.Module], skipped: list[nn.Module], path: str = "") -> None:
    children = dict(block.named_children())
    if children.keys() >= _FUSED:
        features.append(children["proj_out"])
        skipped += [children[name] for name in ("attn", "proj_mlp", "act_mlp")]
        return
    for name, child in children.items():
        below = f"{path}.{name}".lstrip(".")
        if _COMPUTES.fullmatch(name) or _CONVOLVES.fullmatch(below) or type(child).__name__ == "Attention":
            features.append(child)
        else:
            _collect(child, features, skipped, name)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The linear layers and convolutions inside the blocks, by whose calls one sees how much of a denoiser ran."""
    inner, row = unwrap(model), row_for(model)
    blocks = resolve(model, row)[0] if row is not None and row.blocks else [inner]
    every = [module for block in blocks for module in block.modules()]
    return [module for module in every if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def deep_modules(model: nn.Module, branch: int) -> tuple[nn.Module, list[nn.Module]]:
    """What lies inside of skip connection ``branch`` of a U-Net (DeepCache): the last to run, and all before it.

    Raises:
        UnsupportedModelError: no U-Net of down, mid and up blocks made of layers, or ``branch`` is too deep.
    """
    unet: Any = unwrap(model)
    downs, ups = list(getattr(unet, "down_blocks", None) or ()), list(getattr(unet, "up_blocks", None) or ())
    if not downs or not ups or not all(hasattr(block, "resnets") for block in (*downs, *ups)):
        raise UnsupportedModelError(
            f"deepcache can't do {type(unet).__name__}, which is no U-Net of blocks with resnets, such as "
            "UNet2DConditionModel: use spectrum, taylor or reuse, which can do any denoiser"
        )
    connections = [(b, layer) for b, block in enumerate(downs) for layer in range(len(_layers(block)))]
    if branch >= len(connections):
        raise UnsupportedModelError(
            f"branch={branch} is too deep: this {type(unet).__name__} has skip connections 0 … {len(connections) - 1}"
        )
    depth, layer = connections[branch]
    inner_down = [*_flat(_layers(downs[depth])[layer:]), *downs[depth + 1 :]] if layer else downs[depth:]
    meeting = len(ups) - 1 - depth
    split = max(0, len(ups[meeting].resnets) - 1 - layer)
    inner_up = [*ups[:meeting], *_flat(_layers(ups[meeting])[:split])]
    middle = [unet.mid_block] if getattr(unet, "mid_block", None) is not None else []
    deep = [*inner_down, *middle, *inner_up]
    return deep[-1], deep[:-1]


def _layers(block: nn.Module) -> list[list[nn.Module]]:
    """A U-Net block's layers: a convolution with the attention that follows it; last what changes the resolution."""
    count = len(block.resnets)  # type: ignore[arg-type]
    names = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")  # in the order they run
    lists = [getattr(block, name) for name in names if isinstance(getattr(block, name, None), nn.ModuleList)]
    layers = [[children[i] for children in lists if i < len(children)] for i in range(count)]
    samplers = getattr(block, "downsamplers", None)
    return [*layers, list(samplers)] if samplers else layers


def _flat(layers: list[list[nn.Module]]) -> list[nn.Module]:
    return [module for layer in layers for module in layer]


_TEXT_FIRST = ("AuraFlow", "Bria", "Chroma", "Flux", "JointTransformerBlock", "LongCatImage", "Ovis", "QwenImage")


def image_place(block: nn.Module) -> int:
    """Place of the image tokens in the pair (text, image) or (image, text) that a block returns."""
    return int(type(block).__name__.startswith(_TEXT_FIRST))


# What the rule of find_denoiser_classes would take for a denoiser, and why it is none.
_NOT_DENOISERS = {
    "ControlNetUnionModel": "a ControlNet",
    "MiniMaxMusic3RVQDepthDecoder": "predicts codes one after another, before the sampling loop",
    "MotionAdapter": "holds weights for UNetMotionModel and has no forward",
    "Transformer2DModel": "a block of U-Nets",
}
_PACKAGES = ("diffusers.models.transformers.", "diffusers.models.unets.")
_NO_MODELS = ("Pipeline", "Scheduler", "Blocks", "Loader", "Config", "Guidance", "Output", "Processor")


def find_denoiser_classes() -> list[str]:
    """Names of the public denoiser classes in the installed diffusers, sorted.

    The rule: a public `ModelMixin` that is a transformer or a U-Net by the package it lies in, or whose
    forward takes a time; not a ControlNet, nor one of a short list of exceptions.
    """
    import diffusers

    names = [name for name in dir(diffusers) if name[0].isupper() and not name.endswith(_NO_MODELS)]
    return sorted(name for name in names if _is_denoiser(_public(diffusers, name)))


def _public(module: Any, name: str) -> Any:
    try:
        return getattr(module, name)
    except (ImportError, RuntimeError):  # it needs a package that is not installed
        return None


def _is_denoiser(cls: Any) -> bool:
    from diffusers import ModelMixin

    if not isinstance(cls, type) or not issubclass(cls, ModelMixin) or cls is ModelMixin:
        return False
    if cls.__name__ in _NOT_DENOISERS or cls.__name__.endswith("ControlNetModel"):
        return False
    parameters = inspect.signature(cast(Any, cls).forward).parameters
    return cls.__module__.startswith(_PACKAGES) or any(name == "t" or "time" in name for name in parameters)
