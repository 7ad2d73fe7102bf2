"""Load a pipeline and draw with it, with a method or untouched."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cli.guard import FailureError, MistakeError, first_line
from ..cli.request import DEFAULT_MODEL, MethodSpec, Request

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..core.summary import Summary

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Called with the step just done, from 1 on, and the number of steps of the sampler."""


@dataclass(frozen=True)
class Drawing:
    """A picture, or a video of several frames, and what it took; untouched pipelines have no ``summary``."""

    frames: list[Image]
    seconds: float
    summary: Summary | None = None


def load(request: Request) -> Any:
    """The pipeline, on its device.

    Raises:
        MistakeError: no such model or device, or the pipeline does not take what was asked for.
    """
    from ..loading import ASSETS, load_pipeline

    device = pick_device(request.device, request.offload)
    # A folder of the same name, wherever the command happens to run, does not hide the shipped model.
    source = ASSETS / DEFAULT_MODEL if request.model == DEFAULT_MODEL else request.model
    try:
        with warnings.catch_warnings():
            # The old name of the argument is the one that every supported version of diffusers knows.
            warnings.filterwarnings("ignore", "`torch_dtype`", FutureWarning)
            pipe = load_pipeline(source, torch_dtype=_pick_dtype(request, device))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # not found, no network, broken weights, wrong configuration: of many libraries
        raise MistakeError(f"--model {request.model!r} can't be loaded: {first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    check_call(pipe, request)
    _place(pipe, device, request.offload)
    log.info("%s on %s", type(pipe).__name__, device)
    return pipe


def pick_device(name: str | None, offload: str = "none") -> torch.device:
    """The named device, or the best one of this machine."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, there in has.items() if there]
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


def check_call(pipe: Any, request: Request) -> None:
    """Raise :class:`MistakeError` for an option that the pipeline does not take, or a size it can't draw."""
    takes = inspect.signature(type(pipe).__call__).parameters
    asked = request.call_options()
    flags = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
    for name in asked:
        if name not in takes:
            raise MistakeError(f"{type(pipe).__name__} takes no {name}: leave out --{flags.get(name, 'size')}")
    factor = _size_factor(pipe)
    if any(side % factor for side in request.size or ()):
        width, height = request.size or (0, 0)
        nearest = "x".join(str(max(factor, round(side / factor) * factor)) for side in (width, height))
        raise MistakeError(
            f"--size {width}x{height} can't be drawn by {type(pipe).__name__}: "
            f"both sides must be multiples of {factor}, such as {nearest}"
        )


def steps_of(pipe: Any, request: Request) -> int | None:
    """How many steps are asked for, the pipeline's default included; None if its call has none."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("num_inference_steps")
    default = parameter.default if parameter and isinstance(parameter.default, int) else None
    return request.steps or default


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's result is frames."""
    return "num_frames" in inspect.signature(type(pipe).__call__).parameters


def draw(
    pipe: Any,
    request: Request,
    prompt: str,
    seed: int,
    spec: MethodSpec | None,
    on_step: OnStep | None = None,
) -> Drawing:
    """Draw one prompt with a method, or with the untouched pipeline.

    Raises:
        SpectrumError: the method can't be had on this model.
        MistakeError: the pipeline refuses its arguments.
        FailureError: it failed while sampling.
    """
    if spec is None:
        frames, seconds = _call(pipe, request, prompt, seed, started=lambda: True)
        return Drawing(frames, seconds)

    from .. import enable

    steps: list[int] = []

    def note(step: int, branch: str, action: str, reason: str) -> None:
        steps.append(step)
        log.debug("step %d, branch %s: %s %s", step, branch, action, reason)
        if on_step is not None:
            on_step(step + 1, len(getattr(pipe.scheduler, "timesteps", ())) or step + 1)

    with enable(pipe, spec.name, plan=spec.plan, on_step=note, **spec.options) as handle:
        frames, seconds = _call(pipe, request, prompt, seed, started=lambda: bool(steps))
        return Drawing(frames, seconds, handle.summary())


def _call(
    pipe: Any, request: Request, prompt: str, seed: int, started: Callable[[], bool]
) -> tuple[list[Image], float]:
    import torch

    from ..errors import SpectrumError

    # On the CPU whatever the device, so that a seed gives the same noise on every machine.
    generator = torch.Generator("cpu").manual_seed(seed)
    begin = time.perf_counter()
    try:
        result = pipe(prompt, generator=generator, output_type="pil", **request.call_options())
    except SpectrumError:
        raise
    except torch.cuda.OutOfMemoryError:
        raise FailureError(
            "the accelerator's memory is full: try --offload model, a smaller --size or --dtype"
        ) from None
    except (ValueError, TypeError) as error:
        # Pipelines check their arguments before the first step; later the fault is no longer the user's.
        kind = FailureError if started() else MistakeError
        raise kind(f"{type(pipe).__name__}: {first_line(error)}") from error
    return _frames(result), time.perf_counter() - begin


def _frames(result: Any) -> list[Image]:
    for name in ("images", "frames"):
        if (found := getattr(result, name, None)) is not None:
            first = found[0]
            return list(first) if isinstance(first, list) else [first]
    raise FailureError(f"the pipeline's {type(result).__name__} holds neither pictures nor frames")


def _pick_dtype(request: Request, device: torch.device) -> torch.dtype:
    import torch

    from ..loading import named_models

    if request.dtype is not None:
        return getattr(torch, request.dtype)  # type: ignore[no-any-return]
    exact = device.type == "cpu" or request.model in named_models()  # so small, they are as fast
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


def _size_factor(pipe: Any) -> int:
    """What both sides must be multiples of; a processor's factor counts the patches too."""
    for name in ("image_processor", "video_processor"):
        if (processor := getattr(pipe, name, None)) is not None:
            return int(processor.config.vae_scale_factor)
    return int(getattr(pipe, "vae_scale_factor", 1))
