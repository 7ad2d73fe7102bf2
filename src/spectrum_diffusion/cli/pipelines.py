"""Loads the pipeline of a request, places it on a device, and checks what its call takes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..bench.images import IMAGE, SIZE
from ..core.signatures import call_parameters, size_factor
from ..core.words import first_line
from ..errors import SpectrumError
from .guard import MistakeError
from .lora import load_loras
from .request import DEFAULT_MODEL, SamplingRequest

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FLAGS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "num_frames": "--frames",
    "negative_prompt": "--negative-prompt",
    "image": "--image",
    "strength": "--strength",
    **dict.fromkeys(SIZE, "--size"),
}
"""Argument of a call → the option that sets it."""
TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""Attributes in which pipelines keep the number of frames that become one frame of latents."""


def load(request: SamplingRequest) -> Any:
    """Load the pipeline of a request, and place it on its device.

    Raises:
        MistakeError: the model or the device does not exist, or the pipeline does not take what was asked for.
    """
    from ..loading import ASSETS, image_to_image, load_pipeline

    device = pick_device(request.device, request.offload)
    # The shipped model wins over a folder of its name in the current folder.
    source = ASSETS / DEFAULT_MODEL if request.model == DEFAULT_MODEL else request.model
    try:
        with warnings.catch_warnings():
            # The old name of the argument is the one that every supported version of diffusers knows.
            warnings.filterwarnings("ignore", "`torch_dtype`", FutureWarning)
            pipe = load_pipeline(source, torch_dtype=_pick_dtype(request, device))
    except (SpectrumError, ImportError, MemoryError):
        raise
    except Exception as error:  # not found, no network, broken weights, wrong configuration: of many libraries
        raise MistakeError(f"--model {request.model!r} can't be loaded: {first_line(error)}") from error
    if request.image:
        pipe = image_to_image(pipe)
    pipe.set_progress_bar_config(disable=True)
    check_call(pipe, request)
    load_loras(pipe, request.lora)
    _place(pipe, device, request.offload)
    log.info("%s on %s", type(pipe).__name__, device)
    return pipe


def pick_device(name: str | None, offload: str = "none") -> torch.device:
    """The named device, or the best one of this machine.

    Raises:
        MistakeError: this machine has no such device, or offload makes no sense on it.
    """
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, is_available in has.items() if is_available]
    try:
        device = torch.device(name or here[0])
    except RuntimeError:
        raise MistakeError(f"--device {name!r} is unknown: this machine has {', '.join(here)}") from None
    # A kind that is not in the list (xpu, npu …) is left to torch, which knows whether it is there.
    if not has.get(device.type, True) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise MistakeError(f"--device {name!r} is not there: this machine has {', '.join(here)}")
    if device.type == "cpu" and offload != "none":
        raise MistakeError(
            f"--offload {offload} saves the memory of an accelerator, but the device is the CPU: leave it out"
        )
    return device


def check_call(pipe: Any, request: SamplingRequest) -> None:
    """Raise :class:`MistakeError` for an argument that the pipeline does not take, or an impossible size."""
    check_arguments(pipe, request.call_options())


def check_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise :class:`MistakeError` as :func:`check_call` does, for the arguments of a call."""
    parameters = call_parameters(pipe)
    resized = SIZE if IMAGE in call else ()  # the image is resized, and its size is the result's
    for name in call:
        if name not in parameters and name not in resized:
            raise MistakeError(f"{type(pipe).__name__} takes no {name}: leave out {FLAGS.get(name, f'--call {name}')}")
    factor = size_factor(pipe)
    width, height = call.get("width", factor), call.get("height", factor)
    if width % factor or height % factor:
        nearest = "x".join(str(max(factor, round(side / factor) * factor)) for side in (width, height))
        raise MistakeError(
            f"--size {width}x{height} does not fit {type(pipe).__name__}: "
            f"both sides must be multiples of {factor}, such as {nearest}"
        )
    _check_frames(pipe, call.get("num_frames"))
    if "negative_prompt" in call:
        _check_guidance(pipe, call)


def _check_guidance(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse a negative prompt that the pipeline would ignore, because its guidance is off."""
    parameters = call_parameters(pipe)
    # A model with distilled guidance has a second scale, which alone decides about the negative prompt.
    scale = next((name for name in ("true_cfg_scale", "guidance_scale") if name in parameters), None)
    if scale is None:
        return
    value = call.get(scale, parameters[scale].default)
    if isinstance(value, int | float) and value <= 1:
        advice = f"--call {scale}=4" if scale == "true_cfg_scale" else "--guidance above 1"
        raise MistakeError(
            f"--negative-prompt has no effect on {type(pipe).__name__} with {scale}={value:g}: add {advice}, or leave "
            "it out"
        )


def _check_frames(pipe: Any, frames: int | None) -> None:
    """Refuse a number of frames that the pipeline would round.

    A video autoencoder that encodes k frames at a time after the first makes 1 + a multiple of k frames. A pipeline
    whose default is not such a number has another rule, and takes any number.
    """
    parameter = call_parameters(pipe).get("num_frames")
    default = parameter.default if parameter else None
    factor = next((value for name in TEMPORAL_FACTORS if isinstance(value := getattr(pipe, name, None), int)), 1)
    if frames is None or not isinstance(default, int) or (default - 1) % factor or not (frames - 1) % factor:
        return
    less = (frames - 1) // factor * factor + 1
    raise MistakeError(
        f"--frames {frames} does not fit {type(pipe).__name__}: "
        f"the number must be 1 more than a multiple of {factor}, such as {less} or {less + factor}"
    )


def steps_of(pipe: Any, request: SamplingRequest) -> int | None:
    """Number of steps of a request, the pipeline's default included; None if its call has no such argument."""
    parameter = call_parameters(pipe).get("num_inference_steps")
    default = parameter.default if parameter and isinstance(parameter.default, int) else None
    return request.steps or default


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's result is a video."""
    return "num_frames" in call_parameters(pipe)


def _pick_dtype(request: SamplingRequest, device: torch.device) -> torch.dtype:
    import torch

    from ..loading import named_models

    if request.dtype is not None:
        return getattr(torch, request.dtype)  # type: ignore[no-any-return]
    exact = device.type == "cpu" or request.model in named_models()  # which are so small that float32 is as fast
    return torch.float32 if exact else torch.bfloat16


def _place(pipe: Any, device: torch.device, offload: str) -> None:
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
    else:
        pipe.to(device)
