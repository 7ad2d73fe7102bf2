"""Train a tiny Wan: ``python -m training.tiny_wan all``."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from transformers import UMT5EncoderModel

from training import text, video
from training.denoiser import Prompts, zero_outputs
from training.recipe import Config, main
from training.video_recipe import CALL_DEFAULTS, CHANNELS, DENOISER, VAE, WIDTH, VideoRecipe, channel_moments


class TinyWan(nn.Module):
    """Transformer and text encoder as one model, because they are trained together."""

    def __init__(self, transformer: WanTransformer3DModel, t5: UMT5EncoderModel) -> None:
        super().__init__()
        self.transformer, self.t5 = transformer, t5

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The velocity noise − data at `noisy` (B, 16, 4, 12, 12), for σ (B,)."""
        (ids,) = prompts
        mask = ids != self.t5.config.pad_token_id
        encoded = self.t5(ids, mask.long()).last_hidden_state * mask[..., None]  # the pipeline pads with zeros
        return self.transformer(noisy, timestep=1000 * times, encoder_hidden_states=encoded, return_dict=False)[0]


class TinyWanRecipe(VideoRecipe):
    """A small Wan 2.1: self- and cross-attention over 144 tokens of space and time, guidance by two predictions."""

    name = "tiny-wan"
    config = Config(concepts=video.CONCEPTS, vae=VAE, denoiser=DENOISER)
    call_defaults = {**CALL_DEFAULTS, "guidance_scale": 4.0}

    def tokenizers(self) -> tuple[Any, ...]:
        """T5's, with the words of the motions."""
        words = sorted({*self.words, *video.words()})
        return (text.make_t5_tokenizer(words, self.config.text.tokens),)

    def untrained_vae(self) -> AutoencoderKLWan:
        """It compresses 13 frames of 48×48 to 4 of 12×12."""
        return AutoencoderKLWan(
            base_dim=WIDTH,
            z_dim=CHANNELS,
            dim_mult=[1, 2, 3],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.0] * CHANNELS,
            latents_std=[1.0] * CHANNELS,
            scale_factor_temporal=4,
            scale_factor_spatial=4,
        )

    def note_scales(self, vae: nn.Module, latents: torch.Tensor) -> None:
        """Wan has a mean and a standard deviation for each channel."""
        mean, std = channel_moments(latents)
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    def normalised(self, latents: torch.Tensor, vae: AutoencoderKLWan) -> torch.Tensor:
        """With the mean and deviation of each channel."""
        shape = (1, -1, 1, 1, 1)
        mean, std = (torch.tensor(values).view(shape) for values in (vae.config.latents_mean, vae.config.latents_std))
        return (latents - mean) / std

    def untrained(self) -> TinyWan:
        """2.2 million parameters."""
        sizes = self.config.text
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=sizes.t5_width,
            freq_dim=128,
            ffn_dim=512,
            num_layers=6,
            rope_max_seq_len=32,
        )
        zero_outputs(transformer)
        return TinyWan(transformer, text.make_t5(self.tokenizers()[0], sizes, UMT5EncoderModel))

    def pipeline(self, model: TinyWan, vae: AutoencoderKLWan) -> DiffusionPipeline:
        """With Wan's scheduler and its shift for small videos."""
        scheduler = UniPCMultistepScheduler(
            num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        (tokenizer,) = self.tokenizers()
        return WanPipeline(
            tokenizer=tokenizer, text_encoder=model.t5, vae=vae, scheduler=scheduler, transformer=model.transformer
        )


if __name__ == "__main__":
    main(TinyWanRecipe)
