"""Runs the pipeline: images that share their settings in one call, each with the noise of its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.run import OnStep
from ..core.signatures import call_parameters, size_factor
from ..core.summary import Summary
from ..errors import InvalidOptionError, UnsupportedModelError
from ..handle import enable_method
from ..methods import METHODS, AnyMethod, make_method
from ..plan import Plan

if TYPE_CHECKING:
    from PIL.Image import Image

UNTOUCHED = 1.0
"""The speed-up at which every step is evaluated."""
FOUND_BY_SPEEDUP = ("evaluated", "interval", "slope")
"""Options that a speed-up replaces."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the images of one call share; None is the pipeline's own default.

    Attributes:
        size: width and height in pixels.
        speedup: steps over evaluated steps; None is what the server was started with.
        true_guidance: scale of real guidance, for pipelines whose other guidance is distilled.
        negative: whether each image has a negative prompt.
    """

    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    true_guidance: float | None = None
    speedup: float | None = None
    negative: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to generate."""

    prompt: str
    seed: int
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Generated:
    """One image, or None if the pipeline made numbers that are not finite, and what its call did."""

    image: Image | None
    summary: Summary
    steps: int

    @property
    def speedup(self) -> float:
        """Steps of the untouched pipeline over evaluated ones."""
        return self.steps / self.summary.nfe if self.summary.nfe else 1.0


class Engine:
    """A pipeline with the method that accelerates it. One thread may generate at a time.

    Args:
        pipe: an image pipeline, on its device.
        method: name of the method that requests get if they ask for no speed-up.
        options: its options, those of the plan included.
        plan: the plan that they come from.

    Raises:
        InvalidOptionError: the method or its options are wrong, or the plan is for another denoiser.
        UnsupportedModelError: the method does not work on the pipeline, or the pipeline makes no images from text.
    """

    def __init__(self, pipe: Any, method: str, options: dict[str, Any], plan: Plan | None = None) -> None:
        self._pipe, self._name, self._options, self._plan = pipe, method, options, plan
        self._parameters = call_parameters(pipe)
        if "prompt" not in self._parameters or "num_frames" in self._parameters or "image" in self._parameters:
            raise UnsupportedModelError(
                f"{type(pipe).__name__} does not make images from text alone: serve a text-to-image pipeline"
            )
        with enable_method(pipe, self.method(None), plan=plan) as handle:
            self.default = handle.method
        self.size_factor = size_factor(pipe)

    def method(self, speedup: float | None) -> AnyMethod:
        """The method for the speed-up of a request.

        Raises:
            InvalidOptionError: the method has no speed-up to set.
        """
        if speedup is None:
            return make_method(self._name, **self._options)
        cls = METHODS[self._name]
        if cls.knows_options() and "speedup" in cls.defaults():
            kept = {name: value for name, value in self._options.items() if name not in FOUND_BY_SPEEDUP}
            return make_method(self._name, **{**kept, "speedup": speedup})
        if speedup == UNTOUCHED:
            return make_method("spectrum", speedup=speedup)
        raise InvalidOptionError(
            f"speedup={speedup:g} cannot be set, since {self._name} decides at run time which steps it skips: leave "
            'speedup out, or pass 1 (quality "high") to evaluate every step'
        )

    def steps(self, settings: Settings) -> int | None:
        """The steps of a request, the pipeline's default included; None if its call does not say."""
        parameter = self._parameters.get("num_inference_steps")
        default = parameter.default if parameter and isinstance(parameter.default, int) else None
        return settings.steps or default

    def check(self, settings: Settings) -> None:
        """Refuse settings that the pipeline or the method cannot have.

        Raises:
            InvalidOptionError: the message names the setting.
        """
        method = self.method(settings.speedup)
        if (steps := self.steps(settings)) is not None:
            method.begin(steps)
        name = type(self._pipe).__name__
        for argument in self._call(settings).keys() - self._parameters.keys():
            raise InvalidOptionError(f"{argument} is nothing that {name} takes: leave it out")
        if settings.size and any(side % self.size_factor for side in settings.size):
            nearest = "x".join(str(max(1, round(side / self.size_factor)) * self.size_factor) for side in settings.size)
            raise InvalidOptionError(
                f"size={settings.size[0]}x{settings.size[1]} does not fit {name}, whose sides are multiples of "
                f"{self.size_factor}: pass {nearest}, or auto"
            )
        if settings.negative:
            self._check_negative(settings)

    def _check_negative(self, settings: Settings) -> None:
        """Refuse a negative prompt that the pipeline ignores, because its guidance is off."""
        name = type(self._pipe).__name__
        if "negative_prompt" not in self._parameters:
            raise InvalidOptionError(f"negative_prompt is nothing that {name} takes: leave it out")
        scale = next((known for known in ("true_cfg_scale", "guidance_scale") if known in self._parameters), None)
        value = self._call(settings).get(scale, self._parameters[scale].default) if scale else None
        if isinstance(value, int | float) and value <= 1:
            field = "guidance" if scale == "guidance_scale" else scale
            raise InvalidOptionError(
                f"negative_prompt has no effect on {name} with {scale}={value:g}: pass {field} above 1, or leave it out"
            )

    def may_share(self, settings: Settings) -> bool:
        """Whether images may share a call: what a method skips must not depend on the other images."""
        method = self.default if settings.speedup is None else self.method(settings.speedup)
        return not (method.decides_from_content or method.observes)

    def generate(self, settings: Settings, items: Sequence[Item], on_progress: Callable[[int, int], None]) -> list[Any]:
        """Generate images in one call of the pipeline.

        Args:
            on_progress: called after each step with the steps done and their number; an exception that it raises
                ends the generation.

        Returns:
            A :class:`Generated` for each item.
        """
        extra = {"negative_prompt": [item.negative_prompt for item in items]} if settings.negative else {}
        plan = self._plan if settings.speedup is None else None
        with enable_method(
            self._pipe, self.method(settings.speedup), plan=plan, on_step=self._reporting(on_progress)
        ) as handle:
            output = self._pipe(
                prompt=[item.prompt for item in items],
                # On the CPU, so that a seed gives the same noise on every machine.
                generator=[torch.Generator("cpu").manual_seed(item.seed) for item in items],
                output_type="np",
                **self._call(settings),
                **extra,
            )
            summary = handle.summary()
        steps = self.steps(settings) or summary.steps
        return [Generated(as_image(pixels), summary, steps) for pixels in output.images]

    def _reporting(self, on_progress: Callable[[int, int], None]) -> OnStep:
        last = -1

        def report(step: int, branch: str, action: str, reason: str) -> None:
            nonlocal last
            if step != last:  # a step has a call for each guidance branch
                last = step
                on_progress(step + 1, max(step + 1, len(getattr(self._pipe.scheduler, "timesteps", ()))))

        return report

    def _call(self, settings: Settings) -> dict[str, Any]:
        width, height = settings.size or (None, None)
        asked = {
            "width": width,
            "height": height,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "true_cfg_scale": settings.true_guidance,
        }
        return {name: value for name, value in asked.items() if value is not None}


def as_image(pixels: np.ndarray[Any, Any]) -> Image | None:
    """The image of an array, (H, W, 3) within 0 … 1, rounded as diffusers does; None if it is not finite."""
    from PIL import Image

    if not np.isfinite(pixels).all():
        return None
    return Image.fromarray((pixels * 255).round().astype("uint8"))
