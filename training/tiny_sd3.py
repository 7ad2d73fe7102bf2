"""Train a tiny Stable Diffusion 3: ``python -m training.tiny_sd3 all``."""

from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from training import text
from training.denoiser import DenoiserConfig, Prompts, zero_outputs
from training.optim import OptimConfig
from training.recipe import TINY_FLUX, Config, Recipe, main


class TinySD3(nn.Module):
    """Transformer and the three text encoders as one model, because they are trained together."""

    def __init__(self, transformer: SD3Transformer2DModel, clips: nn.ModuleList, t5: T5EncoderModel) -> None:
        super().__init__()
        self.transformer, self.clips, self.t5 = transformer, clips, t5

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The velocity noise − data at `noisy` (B, 4, 16, 16), for σ (B,)."""
        encoded = [clip(ids, output_hidden_states=True) for clip, ids in zip(self.clips, prompts, strict=False)]
        joined = torch.cat([clip.hidden_states[-2] for clip in encoded], dim=-1)  # (B, 16, 128)
        return self.transformer(
            hidden_states=noisy,
            timestep=1000 * times,
            pooled_projections=torch.cat([clip.text_embeds for clip in encoded], dim=-1),
            encoder_hidden_states=torch.cat([joined, self.t5(prompts[2])[0]], dim=1),
            return_dict=False,
        )[0]


class TinySD3Recipe(Recipe):
    """A small Stable Diffusion 3: joint blocks, three text encoders, guidance by two predictions."""

    name = "tiny-sd3"
    shift: ClassVar[float] = 3.0
    config = Config(
        vae=None,
        denoiser=DenoiserConfig(optim=OptimConfig(steps=5500, batch=64, rate=2e-3, average=0.9985)),
    )
    call_defaults = {
        "num_inference_steps": 50,
        "height": 64,
        "width": 64,
        "guidance_scale": 4.0,
        "max_sequence_length": 16,
    }

    def tokenizers(self) -> tuple[Any, ...]:
        """CLIP's twice, then T5's."""
        tokens = self.config.text.tokens
        clips = (text.make_clip_tokenizer(self.words, tokens) for _ in range(2))
        return (*clips, text.make_t5_tokenizer(self.words, tokens))

    def untrained(self) -> TinySD3:
        """The first CLIP and the T5 start from those of tiny-flux, which have the same vocabularies."""
        tokenizer, sizes = self.tokenizers()[0], self.config.text
        transformer = self.transformer(16)
        clips = nn.ModuleList(text.make_clip(tokenizer, sizes, CLIPTextModelWithProjection) for _ in range(2))
        text.take_over_clip(clips[0], TINY_FLUX / "text_encoder")
        return TinySD3(transformer, clips, T5EncoderModel.from_pretrained(TINY_FLUX / "text_encoder_2"))

    def transformer(self, side: int) -> SD3Transformer2DModel:
        """Untrained, for latents of ``side`` × ``side``."""
        sizes = self.config.text
        transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            caption_projection_dim=128,
            joint_attention_dim=sizes.t5_width,
            pooled_projection_dim=2 * sizes.clip_width,
            pos_embed_max_size=side // 2,
        )
        zero_outputs(transformer)
        return transformer

    def pipeline(self, model: TinySD3, vae: AutoencoderKL) -> DiffusionPipeline:
        """With Stable Diffusion 3's scheduler."""
        first, second, third = self.tokenizers()
        return StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=self.shift),
            vae=vae,
            text_encoder=model.clips[0],
            tokenizer=first,
            text_encoder_2=model.clips[1],
            tokenizer_2=second,
            text_encoder_3=model.t5,
            tokenizer_3=third,
            transformer=model.transformer,
        )


if __name__ == "__main__":
    main(TinySD3Recipe)
