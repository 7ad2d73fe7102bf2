"""The autoencoder: 64×64 pictures to 16×16 latents and back."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training.optim import OptimConfig, Trainer, make_optimizers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder and the weights of its losses."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    kl: float = 3e-4
    edges: float = 0.5
    crop: int = 32
    crop_share: float = 0.8
    seed: int = 1
    bfloat16: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=2400, batch=32, rate=3e-3, average=0.998))


def make_vae(config: VaeConfig) -> AutoencoderKL:
    """An untrained autoencoder that halves its picture once less than it has widths."""
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
    """uint8 pixels as floats from -1 to 1."""
    return pixels.float() / 127.5 - 1


def train_vae(make: Callable[[VaeConfig], Any], pixels: torch.Tensor, config: VaeConfig, folder: Path) -> Any:
    """Train what `make` gives on uint8 `pixels` (N, 3, …, H, W): crops first, which are cheap, then all of them."""
    torch.manual_seed(config.seed)
    vae = make(config)
    optimizers = make_optimizers([], vae.parameters(), config.optim)
    trainer = Trainer("vae", vae, optimizers, config.optim, folder)

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        index = torch.randint(len(pixels), (config.optim.batch,), generator=generator)
        images = pixels[index]
        if step < config.crop_share * config.optim.steps:
            images = _crop(images, config.crop, generator)
        images = to_unit(images)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, images, config)

    trainer.run(loss_at)
    trainer.average.copy_to(vae)
    return vae.eval()


def _crop(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    top, left = torch.randint(0, images.shape[-1] - size + 1, (2,), generator=generator).tolist()
    return images[..., top : top + size, left : left + size]


def vae_loss(vae: Any, images: torch.Tensor, config: VaeConfig) -> torch.Tensor:
    """Absolute and squared error, error of the edges, and a light pull of the latents to a unit normal."""
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
    error = output.float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = posterior.kl().sum() / posterior.mean.numel()
    return error.abs().mean() + 2 * error.square().mean() + config.edges * edges + config.kl * kl


@torch.no_grad()
def encode_all(vae: Any, pixels: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Means of the latents of all pictures, (N, C, …) in float32."""
    return torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in pixels.split(batch)])


@torch.no_grad()
def psnr(vae: Any, pixels: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of their reconstructions, in dB."""
    images = to_unit(pixels)
    output = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    mse = functional.mse_loss(output, images, reduction="none").flatten(1).mean(1) / 4
    return float((-10 * mse.log10()).mean())
