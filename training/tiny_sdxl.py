"""Train a tiny Stable Diffusion XL: ``python -m training.tiny_sdxl all``."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from training import text
from training.denoiser import DenoiserConfig, Prompts
from training.optim import OptimConfig
from training.process import NoisePrediction
from training.recipe import TINY_FLUX, Config, Recipe, main

# The settings of Stable Diffusion XL.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
# Few concepts and narrow blocks: convolutions cost much more than tokens, so the training is short.
CONCEPTS = (
    "apple",
    "lemon",
    "banana",
    "pineapple",
    "strawberry",
    "grapes",
    "watermelon",
    "carrot",
    "mushroom",
    "burger",
    "pizza",
    "ice cream",
    "panda",
    "pig",
    "frog",
    "penguin",
    "turtle",
    "crab",
    "smiley",
    "crying face",
    "face with sunglasses",
    "skull",
    "pumpkin",
    "snowman",
    "car",
    "fire truck",
    "balloon",
    "gift",
    "soccer ball",
    "house",
    "sunflower",
    "heart",
)
# Original size, crop position and target size, which the pipeline passes. Here they never change.
SIZES = (64, 64, 0, 0, 64, 64)
SIZE_WIDTH = 16
WIDTHS = (32, 64)


class TinySDXL(nn.Module):
    """U-Net and both text encoders as one model, because they are trained together."""

    def __init__(self, unet: UNet2DConditionModel, clip: CLIPTextModel, clip_2: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.unet, self.clip, self.clip_2 = unet, clip, clip_2

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The noise in `noisy` (B, 4, 16, 16), for timesteps `times` (B,)."""
        encoded = [
            clip(ids, output_hidden_states=True) for clip, ids in zip((self.clip, self.clip_2), prompts, strict=True)
        ]
        sizes = torch.tensor(SIZES, dtype=torch.float32).expand(len(noisy), -1)
        return self.unet(
            noisy,
            times,
            encoder_hidden_states=torch.cat([clip.hidden_states[-2] for clip in encoded], dim=-1),  # (B, 16, 128)
            added_cond_kwargs={"text_embeds": encoded[1].text_embeds, "time_ids": sizes},
            return_dict=False,
        )[0]


class TinySDXLRecipe(Recipe):
    """A small Stable Diffusion XL: a U-Net that predicts the noise, two CLIPs, guidance by two predictions."""

    name = "tiny-sdxl"
    config = Config(
        concepts=CONCEPTS,
        vae=None,
        denoiser=DenoiserConfig(
            process=NoisePrediction(),
            compile=False,  # takes minutes and gains nothing
            bfloat16=False,
            optim=OptimConfig(steps=900, batch=64, rate=2e-3, average=0.998, save_every=200),
        ),
    )
    call_defaults = {"num_inference_steps": 50, "height": 64, "width": 64, "guidance_scale": 4.0}

    def tokenizers(self) -> tuple[Any, ...]:
        """CLIP's twice."""
        return tuple(text.make_clip_tokenizer(self.words, self.config.text.tokens) for _ in range(2))

    def untrained(self) -> TinySDXL:
        """Both CLIPs start from that of tiny-flux; the second has a projection."""
        tokenizer, sizes = self.tokenizers()[0], self.config.text
        unet = UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=WIDTHS,
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=2 * sizes.clip_width,
            addition_embed_type="text_time",
            addition_time_embed_dim=SIZE_WIDTH,
            projection_class_embeddings_input_dim=sizes.clip_width + len(SIZES) * SIZE_WIDTH,
        )
        nn.init.zeros_(unet.conv_out.weight)
        clip = CLIPTextModel.from_pretrained(TINY_FLUX / "text_encoder")
        clip_2 = text.make_clip(tokenizer, sizes, CLIPTextModelWithProjection)
        text.take_over_clip(clip_2, TINY_FLUX / "text_encoder")
        return TinySDXL(unet, clip, clip_2)

    def vae(self) -> AutoencoderKL:
        """Tiny-flux's, with the mean and scale under the names that this pipeline reads."""
        vae = super().vae()
        mean, std = vae.config.shift_factor, 1 / vae.config.scaling_factor
        vae.register_to_config(shift_factor=None, scaling_factor=1.0, latents_mean=[mean] * 4, latents_std=[std] * 4)
        return vae

    def normalised(self, latents: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
        """With unit variance, because noise is mixed in."""
        return (latents - vae.config.latents_mean[0]) / vae.config.latents_std[0]

    def pipeline(self, model: TinySDXL, vae: AutoencoderKL) -> DiffusionPipeline:
        """The empty prompt is encoded like the others and not replaced by zeros, as in training."""
        first, second = self.tokenizers()
        return StableDiffusionXLPipeline(
            scheduler=EulerDiscreteScheduler(num_train_timesteps=1000, **SCHEDULER),
            vae=vae,
            text_encoder=model.clip,
            tokenizer=first,
            text_encoder_2=model.clip_2,
            tokenizer_2=second,
            unet=model.unet,
            force_zeros_for_empty_prompt=False,
        )


if __name__ == "__main__":
    main(TinySDXLRecipe)
