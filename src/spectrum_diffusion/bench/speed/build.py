"""Builds a pipeline around a full-size or scaled-down denoiser with random weights, directly on the device."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core.schedule import check_integer, check_number
from .architectures import Architecture

STD = 0.02
FRAMES_PER_LATENT = 4
MIN_DEPTH, MIN_HEADS, MIN_TOKENS = 2, 2, 8


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        architecture: the model.
        scale: factor of depth, width, tokens of the text, pixels and frames; 1 is the published size.
        height: in pixels; default: the architecture's, scaled.
        width: likewise.
        frames: of a video.
        steps: sampling steps.
        batch: images or videos for each prompt.
        device: where it runs.
        dtype: of weights and embeddings.
        compiled: whether the repeated blocks are compiled.
    """

    architecture: Architecture
    scale: float = 1.0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int = 50
    batch: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def __post_init__(self) -> None:
        check_number("scale", self.scale, least=0.01, most=1.0)
        check_integer("steps", self.steps, least=2)
        check_integer("batch", self.batch, least=1)

    def size(self) -> dict[str, int]:
        """Height, width and, for videos, frames."""
        height, width, *frames = self.architecture.size
        unit, side = self.architecture.spatial, math.sqrt(self.scale)
        size = {
            "height": self.height or max(1, round(height * side / unit)) * unit,
            "width": self.width or max(1, round(width * side / unit)) * unit,
        }
        if frames:
            latent = max(1, round((frames[0] - 1) / FRAMES_PER_LATENT * self.scale))
            size["num_frames"] = self.frames or 1 + FRAMES_PER_LATENT * latent
        return size

    def config(self) -> dict[str, Any]:
        """The denoiser's configuration, scaled: blocks and heads; the size of a head stays."""
        config = dict(self.architecture.config)
        if self.scale == 1.0:
            return config
        heads = self.architecture.heads
        before, config[heads] = config[heads], _scaled(config[heads], self.scale, MIN_HEADS)
        for name in self.architecture.widths:
            config[name] = _proportional(config[name], before, config[heads])
        for name in self.architecture.depths:
            if name in config:
                config[name] = _scaled(config[name], self.scale, MIN_DEPTH)
        return config

    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline's call, with random embeddings."""
        generator = torch.Generator().manual_seed(0)
        embeddings = {}
        for name, shape in self.architecture.embeddings.items():
            mask = name.endswith("mask")
            if mask or len(shape) > 1:
                shape = (_scaled(shape[0], self.scale, MIN_TOKENS), *shape[1:])
            value = torch.ones(1, *shape, dtype=torch.long) if mask else torch.randn(1, *shape, generator=generator)
            embeddings[name] = value.to(self.device, None if mask else self.dtype)
        samples = "num_videos_per_prompt" if len(self.architecture.size) > 2 else "num_images_per_prompt"
        return {
            **self.architecture.call,
            **embeddings,
            **self.size(),
            samples: self.batch,
            "num_inference_steps": self.steps,
            "output_type": "latent",
        }


def _scaled(value: Any, scale: float, least: int) -> Any:
    """A number, or each of several for the levels of a U-Net, which need one at least."""
    if isinstance(value, tuple):
        return tuple(max(1, round(item * scale)) for item in value)
    return max(least, round(value * scale))


def _proportional(value: Any, before: Any, after: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(width // old * new for width, old, new in zip(value, before, after, strict=True))
    return value * after // before


def build(setting: Setting, *, weights: bool = True) -> Any:
    """The pipeline with random weights, and without text encoders and autoencoder.

    Args:
        setting: what is built.
        weights: False leaves the denoiser on the meta device.
    """
    import diffusers

    architecture = setting.architecture
    name, config = architecture.scheduler
    with _without_weights():
        denoiser = getattr(diffusers, architecture.denoiser)(**setting.config()).eval().requires_grad_(False)
    if weights:
        _fill(denoiser, setting)
    else:
        nn.Module.to(denoiser, setting.dtype)
    cls: Any = getattr(diffusers, architecture.pipeline)
    parts = {architecture.component: denoiser, "scheduler": getattr(diffusers, name)(**config)}
    pipe = cls(**{**dict.fromkeys(_required(cls)), **parts})
    pipe.set_progress_bar_config(disable=True)
    if setting.compiled:
        denoiser.compile_repeated_blocks(fullgraph=True)
    return pipe


def _required(cls: Any) -> list[str]:
    """The components that a pipeline must be given, if only as None."""
    parameters = inspect.signature(cls.__init__).parameters
    return [name for name, item in parameters.items() if item.default is item.empty and name != "self"]


@contextmanager
def _without_weights() -> Iterator[None]:
    """Keep new parameters on the meta device, so that none is allocated or initialized. Buffers are made for real."""
    original = nn.Module.register_parameter

    def register_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register_parameter  # type: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore


def _fill(model: nn.Module, setting: Setting) -> None:
    """Random weights on the device: scales of norms are 1, all else is small."""
    precise = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(setting.device).manual_seed(0)
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            keeps = any(part in f"{path}.{name}".split(".") for part in precise)
            value = torch.empty(parameter.shape, device=setting.device, dtype=torch.float32 if keeps else setting.dtype)
            if parameter.dim() == 1 and name == "weight":
                value.fill_(1)
            else:
                value.normal_(std=STD, generator=generator)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
    nn.Module.to(model, setting.device)  # buffers keep their precision
