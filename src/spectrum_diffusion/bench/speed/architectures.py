"""The published configurations of full-size models, as data: what their repositories' config.json files say.

Options that are missing here have diffusers' defaults, which are those of FLUX.1, FLUX.2-dev, Wan 14B, HunyuanVideo and
Qwen-Image.
"""

# Data: a configuration as keywords, several a line, reads better than one argument a line.
# ruff: noqa: C408
# fmt: off

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A model as its pipeline runs it.

    Attributes:
        pipeline: class of diffusers.
        denoiser: its class; its component is "unet" for a U-Net, else "transformer".
        scheduler: class and configuration.
        embeddings: argument of the call → shape without the batch; integers are masks of ones.
        size: height, width and, for videos, frames.
        model: repository of the published weights, from which nothing is downloaded.
        config: of the denoiser.
        call: further arguments of the call.
        depths: options of the configuration that count blocks.
        heads: the option that counts attention heads, whose size stays.
        widths: options proportional to the heads.
        spatial: pixels per token along height and width.
    """

    pipeline: str
    denoiser: str
    scheduler: tuple[str, Mapping[str, Any]]
    embeddings: Mapping[str, tuple[int, ...]]
    size: tuple[int, ...]
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    depths: tuple[str, ...] = ("num_layers", "num_single_layers")
    heads: str = "num_attention_heads"
    widths: tuple[str, ...] = ()
    spatial: int = 16

    @property
    def component(self) -> str:
        return "unet" if "UNet" in self.denoiser else "transformer"


_FLOW = "FlowMatchEulerDiscreteScheduler"
_SHIFTED = dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0,
                use_dynamic_shifting=True)
_WAN: dict[str, Any] = dict(
    pipeline="WanPipeline", denoiser="WanTransformer3DModel",
    scheduler=("UniPCMultistepScheduler", dict(prediction_type="flow_prediction", use_flow_sigmas=True,
                                               flow_shift=3.0)),
    embeddings=dict(prompt_embeds=(512, 4096), negative_prompt_embeds=(512, 4096)),
    size=(480, 832, 81), call=dict(guidance_scale=5.0), depths=("num_layers",), widths=("ffn_dim",),
)

ARCHITECTURES: dict[str, Architecture] = {
    "flux": Architecture(
        "FluxPipeline", "FluxTransformer2DModel", (_FLOW, _SHIFTED),
        dict(prompt_embeds=(512, 4096), pooled_prompt_embeds=(768,)), (1024, 1024),
        "black-forest-labs/FLUX.1-dev", dict(guidance_embeds=True, num_layers=19, num_single_layers=38,
                                             num_attention_heads=24), dict(guidance_scale=3.5)),
    "flux2": Architecture(
        "Flux2Pipeline", "Flux2Transformer2DModel", (_FLOW, _SHIFTED), dict(prompt_embeds=(512, 15360)), (1024, 1024),
        "black-forest-labs/FLUX.2-dev", dict(num_layers=8, num_single_layers=48, num_attention_heads=48),
        dict(guidance_scale=4.0)),
    "sd35-large": Architecture(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel", (_FLOW, dict(shift=3.0)),
        dict(prompt_embeds=(333, 4096), negative_prompt_embeds=(333, 4096), pooled_prompt_embeds=(2048,),
             negative_pooled_prompt_embeds=(2048,)), (1024, 1024),
        "stabilityai/stable-diffusion-3.5-large",
        dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192,
             qk_norm="rms_norm"), dict(guidance_scale=4.5), widths=("caption_projection_dim",)),
    "wan-14b": Architecture(model="Wan-AI/Wan2.1-T2V-14B-Diffusers",
                            config=dict(num_layers=40, num_attention_heads=40, ffn_dim=13824), **_WAN),
    "wan-1.3b": Architecture(model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
                             config=dict(num_layers=30, num_attention_heads=12, ffn_dim=8960), **_WAN),
    "hunyuan": Architecture(
        "HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", (_FLOW, dict(shift=7.0)),
        dict(prompt_embeds=(256, 4096), pooled_prompt_embeds=(768,), prompt_attention_mask=(256,)), (720, 1280, 129),
        "hunyuanvideo-community/HunyuanVideo", dict(num_layers=20, num_single_layers=40, num_attention_heads=24),
        dict(guidance_scale=6.0)),
    "qwen-image": Architecture(
        "QwenImagePipeline", "QwenImageTransformer2DModel",
        (_FLOW, dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, shift=1.0,
                     shift_terminal=0.02, use_dynamic_shifting=True)),
        dict(prompt_embeds=(128, 3584), prompt_embeds_mask=(128,), negative_prompt_embeds=(16, 3584),
             negative_prompt_embeds_mask=(16,)), (1328, 1328),
        "Qwen/Qwen-Image", dict(num_layers=60, num_attention_heads=24), dict(true_cfg_scale=4.0)),
    "sdxl": Architecture(
        "StableDiffusionXLPipeline", "UNet2DConditionModel",
        ("EulerDiscreteScheduler", dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        steps_offset=1, timestep_spacing="leading")),
        dict(prompt_embeds=(77, 2048), negative_prompt_embeds=(77, 2048), pooled_prompt_embeds=(1280,),
             negative_pooled_prompt_embeds=(1280,)), (1024, 1024),
        "stabilityai/stable-diffusion-xl-base-1.0",
        dict(sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
             transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
             addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
             down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
        dict(guidance_scale=5.0), depths=("transformer_layers_per_block",), heads="attention_head_dim",
        widths=("block_out_channels",), spatial=32),
}
