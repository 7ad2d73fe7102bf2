"""The denoisers the pipelines are made around: tiny configurations and conditioning of the right shapes."""

from typing import Any

import diffusers as d
import torch
from torch import Tensor

from .entry import Family


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def image(size: int) -> Tensor:
    return noise(1, 3, size, size, seed=7).sigmoid()


def mask(size: int) -> Tensor:
    """The left half is to be painted anew."""
    return (torch.arange(size) < size // 2).float().expand(1, 1, size, size).clone()


def _image_vae(**options: Any) -> d.AutoencoderKL:
    """An autoencoder without downsampling: a latent pixel is a pixel."""
    return d.AutoencoderKL(
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
        force_upcast=False,
        **{"latent_channels": 4, "shift_factor": 0.06, **options},
    ).eval()


def _flux_parts() -> dict[str, Any]:
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    absent = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return {"transformer": transformer, "vae": _image_vae(), **dict.fromkeys(absent)}


FLUX = Family(
    parts=_flux_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "pooled_prompt_embeds": noise(1, 16, seed=2),
        "guidance_scale": 3.5,
        "height": 8,
        "width": 8,
    },
    tail="norm_out",
)

FLUX_NEGATIVE = {
    "negative_prompt_embeds": noise(1, 6, 16, seed=3),
    "negative_pooled_prompt_embeds": noise(1, 16, seed=4),
    "true_cfg_scale": 2.5,
}


def _sd3_parts() -> dict[str, Any]:
    transformer = d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    absent = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    return {"transformer": transformer, "vae": _image_vae(latent_channels=16), **dict.fromkeys(absent)}


SD3 = Family(
    parts=_sd3_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "negative_prompt_embeds": noise(1, 6, 16, seed=2),
        "pooled_prompt_embeds": noise(1, 16, seed=3),
        "negative_pooled_prompt_embeds": noise(1, 16, seed=4),
        "guidance_scale": 4.0,
        "height": 8,
        "width": 8,
    },
    tail="norm_out",
)


def _wan_transformer(**options: Any) -> d.WanTransformer3DModel:
    return d.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
        **{"in_channels": 16, "out_channels": 16, **options},
    )


def _wan_vae() -> d.AutoencoderKLWan:
    return d.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def _wan_parts() -> dict[str, Any]:
    return {"transformer": _wan_transformer(), "vae": _wan_vae(), "text_encoder": None, "tokenizer": None}


WAN = Family(
    parts=_wan_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "negative_prompt_embeds": noise(1, 6, 16, seed=2),
        "guidance_scale": 5.0,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    },
    tail="norm_out",
)

WAN_EXPERTS = Family(
    parts=lambda: {**_wan_parts(), "transformer_2": _wan_transformer()},
    inputs={**WAN.inputs, "guidance_scale_2": 3.0},
    tail="norm_out",
    denoisers=("transformer", "transformer_2"),
)

WAN_FROM_IMAGE = Family(
    parts=lambda: {**_wan_parts(), "transformer": _wan_transformer(in_channels=36)},
    inputs={**WAN.inputs, "image": image(32)},
    tail="norm_out",
)


def _hunyuan_parts() -> dict[str, Any]:
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = d.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()
    absent = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return {"transformer": transformer, "vae": vae, **dict.fromkeys(absent)}


HUNYUAN_VIDEO = Family(
    parts=_hunyuan_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "pooled_prompt_embeds": noise(1, 8, seed=2),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "guidance_scale": 6.0,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    },
    tail="norm_out",
)


def _cogvideox_parts() -> dict[str, Any]:
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=6,
    )
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    return {"transformer": transformer, "vae": vae, "text_encoder": None, "tokenizer": None}


COGVIDEOX = Family(
    parts=_cogvideox_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "negative_prompt_embeds": noise(1, 6, 16, seed=2),
        "guidance_scale": 6.0,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    },
    tail="norm_final",
)


def _qwen_image_parts() -> dict[str, Any]:
    transformer = d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    return {"transformer": transformer, "vae": vae, "text_encoder": None, "tokenizer": None}


QWEN_IMAGE = Family(
    parts=_qwen_image_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.int64),
        "negative_prompt_embeds": noise(1, 4, 16, seed=2),
        "negative_prompt_embeds_mask": torch.ones(1, 4, dtype=torch.int64),
        "true_cfg_scale": 3.0,
        "height": 32,
        "width": 32,
    },
    tail="norm_out",
)


def _unet(**options: Any) -> d.UNet2DConditionModel:
    return d.UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 2,
            **options,
        }
    )


def _sdxl_parts() -> dict[str, Any]:
    unet = _unet(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        transformer_layers_per_block=(1, 2),
    )
    absent = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return {"unet": unet, "vae": _image_vae(), **dict.fromkeys(absent)}


SDXL = Family(
    parts=_sdxl_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "negative_prompt_embeds": noise(1, 6, 16, seed=2),
        "pooled_prompt_embeds": noise(1, 16, seed=3),
        "negative_pooled_prompt_embeds": noise(1, 16, seed=4),
        "guidance_scale": 5.0,
        "height": 8,
        "width": 8,
    },
    tail="conv_norm_out",
    denoisers=("unet",),
)


def _sd15_parts(**options: Any) -> dict[str, Any]:
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return {"unet": _unet(**options), "vae": _image_vae(), **dict.fromkeys(absent)}


SD15 = Family(
    parts=_sd15_parts,
    inputs={
        "prompt_embeds": noise(1, 6, 16, seed=1),
        "negative_prompt_embeds": noise(1, 6, 16, seed=2),
        "guidance_scale": 5.0,
        "height": 8,
        "width": 8,
    },
    tail="conv_norm_out",
    denoisers=("unet",),
)

# Latent consistency models are distilled: their U-Net is told the guidance and needs no guidance batch.
SD15_LCM = Family(
    parts=lambda: _sd15_parts(time_cond_proj_dim=16),
    inputs=SD15.inputs,
    tail="conv_norm_out",
    denoisers=("unet",),
)
