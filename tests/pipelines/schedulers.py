"""Schedulers as the real pipelines configure them."""

from typing import Any

import diffusers as d

SD_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def flow_euler() -> Any:
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0)


def flux_euler() -> Any:
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def flow_heun() -> Any:
    return d.FlowMatchHeunDiscreteScheduler(shift=3.0)


def flow_unipc() -> Any:
    return d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def euler() -> Any:
    return d.EulerDiscreteScheduler(**SD_NOISE)


def euler_ancestral() -> Any:
    return d.EulerAncestralDiscreteScheduler(**SD_NOISE)


def heun() -> Any:
    return d.HeunDiscreteScheduler(**SD_NOISE)


def ddim() -> Any:
    return d.DDIMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False)


def pndm() -> Any:
    return d.PNDMScheduler(**SD_NOISE, skip_prk_steps=True, set_alpha_to_one=False)


def pndm_runge_kutta() -> Any:
    return d.PNDMScheduler(**SD_NOISE, skip_prk_steps=False, set_alpha_to_one=False)


def dpmpp() -> Any:
    return d.DPMSolverMultistepScheduler(**SD_NOISE)


def unipc() -> Any:
    return d.UniPCMultistepScheduler(**SD_NOISE)


def lcm() -> Any:
    return d.LCMScheduler(**SD_NOISE, clip_sample=False, set_alpha_to_one=False)


def cogvideox_ddim() -> Any:
    return d.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0)
