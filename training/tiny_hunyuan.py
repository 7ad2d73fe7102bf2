"""Train a tiny HunyuanVideo: ``python -m training.tiny_hunyuan all``."""

import dataclasses
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from torch import nn
from transformers import CLIPTextModel, LlamaModel

from training import text, video
from training.denoiser import DistilConfig, Prompts, zero_outputs
from training.optim import OptimConfig
from training.recipe import TINY_FLUX, Config, main
from training.vae import take_over_pictures
from training.video_recipe import CALL_DEFAULTS, CHANNELS, DENOISER, VAE, WIDTH, VideoRecipe, channel_moments

CLIP_TOKENS = 77  # the pipeline's minimum; the pooled token is the first end-of-text token
USED_STATE = -3  # the pipeline uses Llama's hidden state two layers before the last


class TinyHunyuan(nn.Module):
    """Transformer and text encoders as one model, because they are trained together."""

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, llama: LlamaModel, clip: CLIPTextModel) -> None:
        super().__init__()
        self.transformer, self.llama, self.clip = transformer, llama, clip

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The velocity noise − data at `noisy` (B, 16, 4, 12, 12), for σ and `guidance` (B,)."""
        llama, clip = prompts
        mask = (llama != self.llama.config.pad_token_id).long()
        states = self.llama(llama, attention_mask=mask, output_hidden_states=True).hidden_states
        return self.transformer(
            hidden_states=noisy,
            timestep=1000 * times,
            encoder_hidden_states=states[USED_STATE],
            encoder_attention_mask=mask,
            pooled_projections=self.clip(clip).pooler_output,
            guidance=1000 * guidance,
            return_dict=False,
        )[0]


class TinyHunyuanRecipe(VideoRecipe):
    """A small HunyuanVideo: joint attention over 144 tokens of space and time, a guidance embedding."""

    name = "tiny-hunyuan"
    config = Config(
        concepts=video.CONCEPTS,
        vae=dataclasses.replace(VAE, optim=dataclasses.replace(VAE.optim, steps=1500)),  # starts from tiny-flux's
        denoiser=dataclasses.replace(
            DENOISER,
            compile=False,  # the masks are built in a loop over the batch
            optim=dataclasses.replace(DENOISER.optim, steps=2200),
        ),
        text=text.TextConfig(t5_width=64, t5_heads=2, t5_hidden=128),  # three layers are stored, one is used
        distil=DistilConfig(optim=OptimConfig(steps=300, batch=32, rate=6e-4, average=0.99, warmup=30, save_every=100)),
    )
    call_defaults = {
        **CALL_DEFAULTS,
        "guidance_scale": 3.0,
        "prompt_template": {"template": "{}", "crop_start": 0},
    }

    def tokenizers(self) -> tuple[Any, ...]:
        """Llama's and CLIP's, with the words of the motions."""
        words = sorted({*self.words, *video.words()})
        return text.make_word_tokenizer(words, self.config.text.tokens), text.make_clip_tokenizer(words, CLIP_TOKENS)

    def untrained_vae(self) -> AutoencoderKLHunyuanVideo:
        """It compresses 13 frames of 48×48 to 4 of 12×12."""
        widths = (WIDTH, 2 * WIDTH, 3 * WIDTH)
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=CHANNELS,
            down_block_types=("HunyuanVideoDownBlock3D",) * len(widths),
            up_block_types=("HunyuanVideoUpBlock3D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=8,
            spatial_compression_ratio=4,
            temporal_compression_ratio=4,
            mid_block_add_attention=False,
        )
        take_over_pictures(vae, AutoencoderKL.from_pretrained(TINY_FLUX / "vae"))
        return vae

    def note_scales(self, vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> None:
        """HunyuanVideo has one factor and no means, so fold both into its 1×1 convolutions."""
        mean, std = channel_moments(latents)
        quant, post_quant = vae.quant_conv, vae.post_quant_conv
        with torch.no_grad():
            quant.weight[:CHANNELS] /= std.view(-1, 1, 1, 1, 1)
            quant.bias[:CHANNELS] = (quant.bias[:CHANNELS] - mean) / std
            quant.bias[CHANNELS:] -= 2 * std.log()  # log-variances
            post_quant.bias += post_quant.weight[:, :, 0, 0, 0] @ mean
            post_quant.weight *= std.view(1, -1, 1, 1, 1)
        vae.register_to_config(scaling_factor=1.0)

    def normalised(self, latents: torch.Tensor, vae: AutoencoderKLHunyuanVideo) -> torch.Tensor:
        """As the autoencoder returns them, with means and scales folded in."""
        mean, std = (values.view(1, -1, 1, 1, 1) for values in channel_moments(latents))
        return (latents - mean) / std

    def untrained(self) -> TinyHunyuan:
        """2.5 million parameters."""
        llama, clip = self.tokenizers()
        sizes = self.config.text
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=4,
            attention_head_dim=32,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=1,
            mlp_ratio=3.0,
            text_embed_dim=sizes.t5_width,
            pooled_projection_dim=sizes.clip_width,
            rope_axes_dim=(8, 12, 12),
        )
        zero_outputs(transformer)
        return TinyHunyuan(transformer, text.make_llama(llama, sizes), text.make_clip(clip, sizes))

    def pipeline(self, model: TinyHunyuan, vae: AutoencoderKLHunyuanVideo) -> DiffusionPipeline:
        """With shift 3 for small videos; the large model has 7."""
        llama, clip = self.tokenizers()
        return HunyuanVideoPipeline(
            text_encoder=model.llama,
            tokenizer=llama,
            transformer=model.transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
            text_encoder_2=model.clip,
            tokenizer_2=clip,
        )


if __name__ == "__main__":
    main(TinyHunyuanRecipe)
