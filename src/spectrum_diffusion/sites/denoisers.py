"""The table of denoisers: for each class its blocks, and the tail that reads the last feature.

A skipped step leaves out the blocks and calls the tail with the forecast feature. The rest of the model (embeddings,
modulation, final norm and projection) runs as always. A class of diffusers is one row here; a class of your own is one
call of `register_denoiser`. A row without blocks has only the output site, and says why. The other sites need further
fields of the row, which rules fill in for most classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, cast

from torch import nn

from ..core.words import did_you_mean
from ..errors import UnsupportedModelError
from .row import DenoiserRow

_REMEDY = 'use site="output", or register_denoiser with the right names'

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

# Configurations to which the row of their class does not apply: a test of the model, and the reason if it is true.
_EXCEPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "UNet2DModel": (
        lambda model: any(hasattr(block, "skip_conv") for block in model.up_blocks),
        "its skip blocks add a second sample to the output, after the tail",
    ),
}

_registered: dict[str, DenoiserRow] = {}

Paths = str | Iterable[str]
_SEVERAL = ("preliminary", "modules", "fused")
"""Further fields of a row that take several paths."""


def register_denoiser(
    cls: type | str, *, blocks: Paths = (), tail: Paths = (), reason: str = "", **roles: Any
) -> DenoiserRow:
    """Add a row for a denoiser class, or replace the one it has.

    Args:
        cls: the class, or its name. Subclasses use the row too.
        blocks: paths of the blocks, as in `DenoiserRow`; a single path may be a string.
        tail: paths of the modules that receive the feature, likewise.
        reason: why only the output site works, for a row without blocks.
        roles: further fields of `DenoiserRow`, if the module names differ from those of diffusers:
            ``preliminary``, ``reshapes``, ``text_first``, ``embedder``, ``modules``, ``fused``, ``tokens``, ``unet``.

    Raises:
        UnsupportedModelError: the row is inconsistent, see `DenoiserRow`, or `cls` is neither a class nor a name.
    """
    name = cls.__name__ if isinstance(cls, type) else cls
    if not isinstance(name, str) or not name.isidentifier():
        raise UnsupportedModelError(
            f"register_denoiser got {cls!r}: pass the denoiser's class or its name, not an instance"
        )
    known = [field.name for field in fields(DenoiserRow)]
    for role, value in roles.items():
        if role not in known:
            raise UnsupportedModelError(
                f"register_denoiser({name}) got {role}={value!r}, which is not a field of a row"
                f"{did_you_mean(role, known)}: its fields are {', '.join(known)}"
            )
    paths = {"blocks": blocks, "tail": tail} | {role: roles.pop(role) for role in _SEVERAL if roles.get(role)}
    tuples: Any = {what: _paths(name, what, value) for what, value in paths.items()}
    row = DenoiserRow(name, reason=reason, **tuples, **roles)
    _registered[name] = row
    return row


def _paths(cls: str, what: str, value: Any) -> tuple[str, ...]:
    paths = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for path in paths:
        if not isinstance(path, str):
            raise UnsupportedModelError(
                f"the row of {cls} has {path!r} in its {what}, which is not a path: pass attribute names, not modules"
            )
    return paths


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, or the module itself."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def identity(model: nn.Module) -> str:
    """The name of a denoiser in calibrations: class, number of blocks and width, "FluxTransformer2DModel-57x3072".

    A denoiser that takes more channels than it returns (image-to-video, inpainting) is named with their number:
    "WanTransformer3DModel-40x5120-in36".
    """
    row, inner = row_for(model), unwrap(model)
    count = len(main_blocks(model)) if row is not None and row.blocks else 0
    config = getattr(inner, "config", {})
    width = _width(config)
    taken, returned = config.get("in_channels"), config.get("out_channels")
    inputs = f"-in{taken}" if taken and returned and taken != returned else ""
    return f"{type(inner).__name__}-{count}{f'x{width}' if width else ''}{inputs}"


def _width(config: Mapping[str, Any]) -> int:
    """Channels of a token inside the blocks, or of a U-Net's deepest level; 0 if the configuration does not tell."""
    if levels := config.get("block_out_channels"):
        return int(max(levels)) if isinstance(levels, Iterable) else int(levels)
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    of_all_heads = heads * size if isinstance(heads, int) and isinstance(size, int) else 0
    return of_all_heads or config.get("hidden_size") or config.get("dim") or 0


def row_for(model: nn.Module) -> DenoiserRow | None:
    """The row of a model, by the name of its class or of the nearest base class that has a row; None without one.

    A registered row wins over the built-in row of the same name. If the model's configuration lacks a module that a
    built-in row names, the returned row has only the output site, and the reason.
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
    return replace(row, blocks=(), tail=(), preliminary=None, reason=reason)


def resolve(model: nn.Module, row: DenoiserRow) -> tuple[list[nn.Module], list[nn.Module]]:
    """The blocks, in the order of the row, and the tails of a model; both are empty if it has only the output site.

    Raises:
        UnsupportedModelError: the model lacks a module that the row names.
    """
    model = unwrap(model)
    blocks = [block for path in row.blocks for block in _members(module_at(model, row, path))]
    tails = [tail for path in row.tail for tail in _tails(model, row, path)]
    for what, modules in (("blocks", blocks), ("tail", tails)):
        if row.blocks and not modules:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no module at the {what} of its row, "
                f"{', '.join(getattr(row, what))}: {_REMEDY}"
            )
    return blocks, tails


def _tails(model: nn.Module, row: DenoiserRow, path: str) -> list[nn.Module]:
    module = module_at(model, row, path.removesuffix(".*"))
    members = list(_members(module))
    if not path.endswith(".*") and members not in ([], [module]):
        raise UnsupportedModelError(
            f'the tail {path!r} of {row.cls} is a container of modules: write "{path}.*" for all of its members'
        )
    return members


def _members(module: nn.Module | None) -> Iterator[nn.Module]:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _members(child)
    elif module is not None:
        yield module


def module_at(model: nn.Module, row: DenoiserRow, path: str) -> nn.Module | None:
    """The module at a path; None if the model sets it to None, or lacks a module that may be absent."""
    missing = object()
    module = _attribute(model, path.removesuffix("?"), missing)
    if module is missing and path.endswith("?"):
        return None
    if module is not None and not isinstance(module, nn.Module):
        has = ", ".join(name for name, _ in model.named_children())
        raise UnsupportedModelError(
            f"{type(model).__name__} has no module {path!r}, which the row of {row.cls} names, but it has {has}: "
            f"{_REMEDY}"
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
    """The row of a model with a last block.

    Raises:
        UnsupportedModelError: it has none; the message says what to do.
    """
    row, cls = row_for(model), type(model).__name__
    if row is None:
        raise UnsupportedModelError(
            f'{cls} has no row in the table of denoisers, so its last block is unknown: use site="output", which works '
            f"for any denoiser, or add a row with register_denoiser({cls}, blocks=(…), tail=(…))"
        )
    if not row.blocks:
        raise UnsupportedModelError(f'{cls} has no last-block site ({row.reason}): use site="output"')
    return row


def main_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that process the sample, without text refiners and the like.

    Raises:
        UnsupportedModelError: the model has no last block.
    """
    row, inner = last_block_row(model), unwrap(model)
    return [block for path in row.main for block in _members(module_at(inner, row, path))]


# Classes that the rule of find_denoiser_classes would take for denoisers, and why they are not.
_NOT_DENOISERS = {
    "ControlNetUnionModel": "a ControlNet",
    "MiniMaxMusic3RVQDepthDecoder": "predicts codes one after another, before the sampling loop",
    "MotionAdapter": "holds weights for UNetMotionModel and has no forward",
    "Transformer2DModel": "a block of U-Nets",
}
_PACKAGES = ("diffusers.models.transformers.", "diffusers.models.unets.")
_OTHER_CLASSES = ("Pipeline", "Scheduler", "Blocks", "Loader", "Config", "Guidance", "Output", "Processor")


def find_denoiser_classes() -> list[str]:
    """Names of the public denoiser classes in the installed diffusers, sorted.

    The rule: a public `ModelMixin` in the packages of transformers or U-Nets, or with a forward that takes a time.
    ControlNets and a short list of exceptions do not count.
    """
    import diffusers

    names = [name for name in dir(diffusers) if name[0].isupper() and not name.endswith(_OTHER_CLASSES)]
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
