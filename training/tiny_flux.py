"""Train the tiny FLUX that ships: ``python -m training.tiny_flux all``."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers import FluxTransformer2DModel as Transformer
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from training import text
from training.denoiser import DistilConfig, Prompts, zero_outputs
from training.recipe import TINY_FLUX, Config, Recipe, main

# The settings of FLUX.1-dev. For 64 tokens they give a shift of 1.6, with which the training draws σ.
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SIDE = 8  # tokens


class TinyFlux(nn.Module):
    """Transformer and text encoders as one model, because they are trained together."""

    def __init__(self, transformer: Transformer, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.transformer, self.clip, self.t5 = transformer, clip, t5
        grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
        self.register_buffer("img_ids", torch.cat([torch.zeros(SIDE * SIDE, 1), grid], dim=1), persistent=False)
        tokens = clip.config.max_position_embeddings
        self.register_buffer("txt_ids", torch.zeros(tokens, 3), persistent=False)

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The velocity noise − data at `noisy` (B, 64, D), for σ and `guidance` (B,)."""
        clip, t5 = prompts
        return self.transformer(
            hidden_states=noisy,
            timestep=times,
            guidance=guidance,
            pooled_projections=self.clip(clip).pooler_output,
            encoder_hidden_states=self.t5(t5)[0],
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(N, C, 16, 16) to (N, 64, 4·C), two by two, in the order of FluxPipeline."""
    n, c, h, w = latents.shape
    patches = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)  # (N, 8, 8, C, 2, 2)
    return patches.reshape(n, h * w // 4, 4 * c)


class TinyFluxRecipe(Recipe):
    """A small FLUX.1-dev: two kinds of blocks, rotary positions, a guidance embedding."""

    name = "tiny-flux"
    config = Config(distil=DistilConfig())
    call_defaults = {
        "num_inference_steps": 50,
        "height": 64,
        "width": 64,
        "guidance_scale": 3.0,
        "max_sequence_length": 16,
    }

    @classmethod
    def folder_of_model(cls) -> Path:
        """The assets of the package."""
        return TINY_FLUX

    def tokenizers(self) -> tuple[Any, ...]:
        """CLIP's and T5's."""
        tokens = self.config.text.tokens
        return text.make_clip_tokenizer(self.words, tokens), text.make_t5_tokenizer(self.words, tokens)

    def untrained(self) -> TinyFlux:
        """4.2 million parameters."""
        clip, t5 = self.tokenizers()
        sizes = self.config.text
        transformer = Transformer(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=5,
            joint_attention_dim=sizes.t5_width,
            pooled_projection_dim=sizes.clip_width,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        zero_outputs(transformer)
        return TinyFlux(transformer, text.make_clip(clip, sizes), text.make_t5(t5, sizes))

    def normalised(self, latents: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
        """Packed as FluxPipeline packs them."""
        return pack(super().normalised(latents, vae))

    def pipeline(self, model: TinyFlux, vae: AutoencoderKL) -> DiffusionPipeline:
        """With FLUX.1-dev's scheduler."""
        clip, t5 = self.tokenizers()
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            vae=vae,
            text_encoder=model.clip,
            tokenizer=clip,
            text_encoder_2=model.t5,
            tokenizer_2=t5,
            transformer=model.transformer,
        )


if __name__ == "__main__":
    main(TinyFluxRecipe)
