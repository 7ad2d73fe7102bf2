"""Tiny diffusers pipelines with random weights, one entry for each way of calling a denoiser.

Every pipeline is built from configuration, seeded, in float32 on the CPU, and is given prompt embeddings in
place of text encoders, so that nothing is downloaded and a call of ten steps takes a fraction of a second.
"""

from collections.abc import Callable
from typing import Any

import diffusers as d

from . import schedulers as s
from .entry import Family, PipelineEntry
from .families import (
    COGVIDEOX,
    FLUX,
    FLUX_NEGATIVE,
    HUNYUAN_VIDEO,
    QWEN_IMAGE,
    SD3,
    SD15,
    SD15_LCM,
    SDXL,
    WAN,
    WAN_EXPERTS,
    WAN_FROM_IMAGE,
    image,
    mask,
    noise,
)

__all__ = ["PIPELINES", "Family", "PipelineEntry"]

GUIDANCE_BATCH = ("prompt_embeds", "add_text_embeds", "add_time_ids")
STRENGTH = 0.6
REPAINT = {"image": image(8), "strength": STRENGTH}
INPAINT = {**REPAINT, "mask_image": mask(8)}
NO_CHECKER = {"requires_safety_checker": False}
LATENT_IMAGE = noise(1, 4, 8, 8, seed=8)


def _halve_guidance_batch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Ends batched guidance after three fifths of the steps: from then on the batch is half as large."""
    if step + 1 != pipe.num_timesteps * 3 // 5:
        return tensors
    pipe._guidance_scale = 0.0
    conditional = {name: tensors[name].chunk(2)[-1] for name in GUIDANCE_BATCH}
    return tensors | conditional


def _set_guidance_midway(scale: float) -> Callable[..., dict[str, Any]]:
    """Starts or ends two-call guidance at the middle of the steps: a branch appears or disappears."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == pipe.num_timesteps // 2:
            pipe._guidance_scale = scale
        return tensors

    return callback


def _two_stage(steps: int) -> int:
    """Heun's second stage is an entry of its own, and the last step has none."""
    return 2 * steps - 1


def _strength(steps: int) -> int:
    return int(steps * STRENGTH)


def _strength_rounded_up(steps: int) -> int:
    """The flow-matching pipelines round the number of steps left out down, so that of the steps left up."""
    return steps - int(steps - steps * STRENGTH)


def _window(first: float, last: float) -> Callable[[int], int]:
    """Steps between two shares of the denoising, with timesteps spaced as in `SD_NOISE`."""

    def total(steps: int) -> int:
        timesteps = [step * (1000 // steps) + 1 for step in range(steps)]
        below = 1000 - round(1000 * first)
        return sum(1000 - round(1000 * last) <= timestep < below for timestep in timesteps)

    return total


PIPELINES: dict[str, PipelineEntry] = {
    "flux": PipelineEntry(d.FluxPipeline, FLUX, s.flux_euler),
    "flux-true-cfg": PipelineEntry(d.FluxPipeline, FLUX, s.flux_euler, FLUX_NEGATIVE, branches=2),
    "flux-img2img": PipelineEntry(d.FluxImg2ImgPipeline, FLUX, s.flux_euler, REPAINT, total=_strength_rounded_up),
    "flux-inpaint": PipelineEntry(d.FluxInpaintPipeline, FLUX, s.flux_euler, INPAINT, total=_strength_rounded_up),
    "sd3": PipelineEntry(d.StableDiffusion3Pipeline, SD3, s.flow_euler),
    "sd3-skip-layer": PipelineEntry(
        d.StableDiffusion3Pipeline,
        SD3,
        s.flow_euler,
        {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.05, "skip_layer_guidance_stop": 0.8},
        branches=2,
    ),
    "sd3-img2img": PipelineEntry(
        d.StableDiffusion3Img2ImgPipeline, SD3, s.flow_euler, REPAINT, total=_strength_rounded_up
    ),
    "sd3-inpaint": PipelineEntry(
        d.StableDiffusion3InpaintPipeline, SD3, s.flow_euler, INPAINT, total=_strength_rounded_up
    ),
    "sd3-heun": PipelineEntry(d.StableDiffusion3Pipeline, SD3, s.flow_heun, total=_two_stage),
    "wan": PipelineEntry(d.WanPipeline, WAN, s.flow_unipc, branches=2),
    "wan-guidance-stops": PipelineEntry(
        d.WanPipeline, WAN, s.flow_unipc, {"callback_on_step_end": _set_guidance_midway(1.0)}, branches=2
    ),
    "wan-guidance-starts": PipelineEntry(
        d.WanPipeline,
        WAN,
        s.flow_unipc,
        {"guidance_scale": 1.0, "callback_on_step_end": _set_guidance_midway(5.0)},
        branches=2,
    ),
    "wan22": PipelineEntry(d.WanPipeline, WAN_EXPERTS, s.flow_unipc, settings={"boundary_ratio": 0.7}, branches=2),
    "wan-i2v": PipelineEntry(d.WanImageToVideoPipeline, WAN_FROM_IMAGE, s.flow_unipc, branches=2),
    "hunyuan-video": PipelineEntry(d.HunyuanVideoPipeline, HUNYUAN_VIDEO, s.flow_euler),
    "qwen-image": PipelineEntry(d.QwenImagePipeline, QWEN_IMAGE, s.flux_euler, branches=2),
    "cogvideox": PipelineEntry(d.CogVideoXPipeline, COGVIDEOX, s.cogvideox_ddim),
    "sdxl": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.euler),
    "sdxl-ddim": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.ddim),
    "sdxl-pndm": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.pndm_runge_kutta, total=lambda steps: steps + 9),
    "sdxl-heun": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.heun, total=_two_stage),
    "sdxl-dpmpp": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.dpmpp),
    "sdxl-unipc": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.unipc),
    "sdxl-euler-ancestral": PipelineEntry(d.StableDiffusionXLPipeline, SDXL, s.euler_ancestral, stochastic=True),
    "sdxl-img2img": PipelineEntry(d.StableDiffusionXLImg2ImgPipeline, SDXL, s.euler, REPAINT, total=_strength),
    "sdxl-img2img-ddim": PipelineEntry(d.StableDiffusionXLImg2ImgPipeline, SDXL, s.ddim, REPAINT, total=_strength),
    "sdxl-img2img-heun": PipelineEntry(
        d.StableDiffusionXLImg2ImgPipeline,
        SDXL,
        s.heun,
        REPAINT,
        total=lambda steps: _two_stage(_strength(steps)),
    ),
    "sdxl-inpaint": PipelineEntry(d.StableDiffusionXLInpaintPipeline, SDXL, s.euler, INPAINT, total=_strength),
    "sdxl-denoising-end": PipelineEntry(
        d.StableDiffusionXLPipeline, SDXL, s.euler, {"denoising_end": 0.7}, total=_window(0.0, 0.7)
    ),
    "sdxl-denoising-end-ddim": PipelineEntry(
        d.StableDiffusionXLPipeline, SDXL, s.ddim, {"denoising_end": 0.7}, total=_window(0.0, 0.7)
    ),
    "sdxl-denoising-start": PipelineEntry(
        d.StableDiffusionXLImg2ImgPipeline,
        SDXL,
        s.euler,
        {"image": LATENT_IMAGE, "denoising_start": 0.3},
        total=_window(0.3, 1.0),
    ),
    "sdxl-denoising-window": PipelineEntry(
        d.StableDiffusionXLImg2ImgPipeline,
        SDXL,
        s.euler,
        {"image": LATENT_IMAGE, "denoising_start": 0.2, "denoising_end": 0.9},
        total=_window(0.2, 0.9),
    ),
    "sdxl-guidance-interval": PipelineEntry(
        d.StableDiffusionXLPipeline,
        SDXL,
        s.euler,
        {
            "callback_on_step_end": _halve_guidance_batch,
            "callback_on_step_end_tensor_inputs": ["latents", *GUIDANCE_BATCH],
        },
    ),
    "sd15": PipelineEntry(d.StableDiffusionPipeline, SD15, s.pndm, settings=NO_CHECKER, total=lambda steps: steps + 1),
    "sd15-img2img": PipelineEntry(d.StableDiffusionImg2ImgPipeline, SD15, s.ddim, REPAINT, NO_CHECKER, total=_strength),
    "sd15-lcm": PipelineEntry(d.StableDiffusionPipeline, SD15_LCM, s.lcm, settings=NO_CHECKER, stochastic=True),
}
