"""The autoencoder: 64×64 images to 16×16 latents and back."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from training.optim import OptimConfig, Trainer, make_optimizers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part of the training, with the size of its crops.

    Attributes:
        until: share of the steps at which the part ends.
        crop: side of the square crops in pixels; None for whole images.
        frames: number of consecutive frames; None for whole videos, and for images.
        batch: batch size; None for that of the optimizer's settings.
    """

    until: float
    crop: int | None = None
    frames: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder, weights of its losses, and the parts of its training, the cheap ones first."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    kl: float = 3e-4
    edges: float = 0.5
    parts: tuple[Part, ...] = (Part(0.8, crop=32), Part(1.0))
    seed: int = 1
    bfloat16: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=2400, batch=32, rate=3e-3, average=0.998))


def make_vae(config: VaeConfig) -> AutoencoderKL:
    """An untrained autoencoder, with one downsampling less than it has widths."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels as floats from −1 to 1."""
    return pixels.float() / 127.5 - 1


def train_vae(make: Callable[[VaeConfig], Any], pixels: torch.Tensor, config: VaeConfig, folder: Path) -> Any:
    """Train the autoencoder of `make` on uint8 `pixels` (N, 3, …, H, W), part by part."""
    torch.manual_seed(config.seed)
    vae = make(config)
    optimizers = make_optimizers([], vae.parameters(), config.optim)
    trainer = Trainer("vae", vae, optimizers, config.optim, folder)

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        part = next(part for part in config.parts if step < part.until * config.optim.steps)
        index = torch.randint(len(pixels), (part.batch or config.optim.batch,), generator=generator)
        images = to_unit(cut(pixels[index], part, generator))
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, images, config)

    trainer.run(loss_at)
    trainer.average.copy_to(vae)
    return vae.eval()


def cut(images: torch.Tensor, part: Part, generator: torch.Generator) -> torch.Tensor:
    """The same frames and square of all: (B, 3, …, H, W) in, fewer or smaller ones out."""
    wanted = {images.ndim - 2: part.crop, images.ndim - 1: part.crop}
    if images.ndim == 5:
        wanted[2] = part.frames
    for dim, size in wanted.items():
        if size is not None:
            start = int(torch.randint(0, images.shape[dim] - size + 1, (1,), generator=generator))
            images = images.narrow(dim, start, size)
    return images


def vae_loss(vae: Any, images: torch.Tensor, config: VaeConfig) -> torch.Tensor:
    """Absolute and squared error, error of the edges, and a small KL divergence from the unit normal."""
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
    error = output.float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = posterior.kl().sum() / posterior.mean.numel()
    return error.abs().mean() + 2 * error.square().mean() + config.edges * edges + config.kl * kl


@torch.no_grad()
def take_over_pictures(video: nn.Module, picture: nn.Module) -> None:
    """Start HunyuanVideo's autoencoder from an image autoencoder, as far as their channels match.

    A 2D kernel becomes the last time slice of a 3D kernel, which is the present frame; the other slices start at zero.
    Latent channels that the image autoencoder lacks start with little noise.
    """
    known = dict(picture.named_parameters())
    for name, parameter in video.named_parameters():
        source = known.get(re.sub(r"\.conv\.(weight|bias)$", r".\1", name), known.get(name))
        if source is None:
            continue
        parameter.zero_()
        now = parameter[:, :, -1] if parameter.ndim == source.ndim + 1 else parameter
        place = tuple(slice(min(sizes)) for sizes in zip(now.shape, source.shape, strict=True))
        now[place] = source[place]
    for layer in (video.quant_conv, video.post_quant_conv):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    own, known_channels = len(video.post_quant_conv.bias), len(picture.encoder.conv_out.bias) // 2
    for values in (video.encoder.conv_out.conv.weight, video.encoder.conv_out.conv.bias):
        values[known_channels:] = 0  # including the log-variances, which have other indices
    video.encoder.conv_out.conv.bias[own:] = -6


@torch.no_grad()
def encode_all(vae: Any, pixels: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Means of the latents of all images, (N, C, …) in float32."""
    return torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in pixels.split(batch)])


@torch.no_grad()
def psnr(vae: Any, pixels: torch.Tensor) -> float:
    """PSNR of the reconstructions in dB, mean over images."""
    images = to_unit(pixels)
    output = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    mse = functional.mse_loss(output, images, reduction="none").flatten(1).mean(1) / 4
    return float((-10 * mse.log10()).mean())
