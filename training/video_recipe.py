"""The training stages of a video model: those of an image model, with moving objects and strips of frames."""

import dataclasses
import logging
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from training import emoji, video
from training.denoiser import DenoiserConfig
from training.optim import OptimConfig
from training.process import FlowMatching
from training.recipe import Recipe
from training.sheet import draw_strips
from training.vae import Part, VaeConfig, psnr, train_vae

logger = logging.getLogger(__name__)
CHANNELS = 16
WIDTH = 16  # narrower would not be faster: at this size, the time goes into overhead between convolutions
VAE = VaeConfig(
    latent_channels=CHANNELS,
    parts=(
        Part(0.3, crop=24, frames=1, batch=64),
        Part(0.65, crop=32, frames=5),
        Part(1.0, crop=32),  # whole videos: frames are decoded one after the other, so errors accumulate
    ),
    bfloat16=False,  # slower than float32 for these convolutions
    optim=OptimConfig(steps=2200, batch=8, rate=3e-3, average=0.995, save_every=100),
)
DENOISER = DenoiserConfig(
    process=FlowMatching(shift=2.0),
    prompts=6,
    optim=OptimConfig(steps=2400, batch=32, rate=2e-3, average=0.998, save_every=200),
)
CALL_DEFAULTS = {
    "num_inference_steps": 50,
    "height": video.SIZE,
    "width": video.SIZE,
    "num_frames": video.FRAMES,
    "max_sequence_length": 16,
}


def channel_moments(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of latents (N, C, F, H, W)."""
    channels = latents.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.std(1)


class VideoRecipe(Recipe):
    """A model also implements `untrained_vae` and `note_scales`."""

    @abstractmethod
    def untrained_vae(self) -> Any:
        """The untrained video autoencoder."""

    def data(self) -> Any:
        """Draw all videos, once."""
        path = self.folder / "videos.pt"
        if path.exists():
            return video.Videos(**torch.load(path, weights_only=True))
        originals = emoji.read_pictures(emoji.fetch(self.folder), [concept.emoji for concept in self.concepts])
        videos = video.draw_all(self.concepts, originals, self.config.videos)
        torch.save(dataclasses.asdict(videos), path)
        logger.info("%d videos of %d objects", len(videos.pixels), len(self.concepts))
        return videos

    def vae(self) -> Any:
        """Train the autoencoder, and store the means and scales of its channels in its configuration."""
        assert self.config.vae is not None
        pixels = self.data().pixels
        vae = train_vae(lambda config: self.untrained_vae(), pixels, self.config.vae, self.folder)
        self.note_scales(vae, self.latents(vae, pixels))
        logger.info("reconstruction: %.2f dB", psnr(vae, pixels[::97]))
        return vae

    @abstractmethod
    def note_scales(self, vae: nn.Module, latents: torch.Tensor) -> None:
        """Store in the configuration what normalises the latents to unit variance."""

    def texts(self, forms: int) -> tuple[list[str], tuple[int, ...]]:
        """`forms` seeded prompts for every object on every background in every motion."""
        rng = np.random.default_rng(self.config.denoiser.seed)
        texts = [
            video.prompt(concept, background, motion, rng)
            for concept in self.concepts
            for background in video.GROUNDS
            for motion in video.MOTIONS
            for _ in range(forms)
        ]
        return texts, (len(self.concepts), len(video.GROUNDS), len(video.MOTIONS), forms)

    def prompts(self) -> list[tuple[str, str]]:
        """Every object once, with motions and backgrounds in turn; the category is the motion."""
        motions = list(video.MOTIONS)
        rows = []
        for place, concept in enumerate(self.concepts):
            motion = motions[place % len(motions)]
            ground = video.GROUNDS[(place + place // len(motions)) % len(video.GROUNDS)]
            suffix = "" if ground == "white" else f" on {ground}"
            rows.append((f"{concept.name} {motion}{suffix}", motion))
        return rows

    def sheet(self) -> None:
        """Draw a video of each of the model's prompts, for judging without knowing them."""
        draw_strips(self.output, self.folder, [text for text, _ in self.prompts()])
