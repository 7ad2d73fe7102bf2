"""What requests may ask of a pipeline and its method, known without the pipeline: it may be in another process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..core.schedule import at_most
from ..core.signatures import call_parameters, size_factor
from ..errors import InvalidOptionError, UnsupportedModelError
from ..methods import METHODS, AnyMethod, make_method

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

    def call(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        width, height = self.size or (None, None)
        asked = {
            "width": width,
            "height": height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "true_cfg_scale": self.true_guidance,
        }
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a pipeline takes, and which method accelerates it.

    Attributes:
        pipeline: name of its class.
        arguments: of its call, with their defaults where these are numbers.
        size_factor: what sides are multiples of.
        method_name: the method that requests get if they ask for no speed-up.
        options: its options, those of the plan included.
        shares: whether its images may share a call.
    """

    pipeline: str
    arguments: Mapping[str, float | None]
    size_factor: int
    method_name: str
    options: Mapping[str, Any]
    shares: bool

    @classmethod
    def of(cls, pipe: Any, method_name: str, options: Mapping[str, Any], default: AnyMethod) -> Abilities:
        """The abilities of a pipeline with a method.

        Args:
            default: the method as :func:`enable` resolved it on the pipeline.

        Raises:
            UnsupportedModelError: the pipeline makes no images from text.
        """
        parameters = call_parameters(pipe)
        if "prompt" not in parameters or "num_frames" in parameters or "image" in parameters:
            raise UnsupportedModelError(
                f"{type(pipe).__name__} does not make images from text alone: serve a text-to-image pipeline"
            )
        numbers = {
            name: value.default if isinstance(value.default, int | float) else None
            for name, value in parameters.items()
        }
        return cls(
            pipeline=type(pipe).__name__,
            arguments=numbers,
            size_factor=size_factor(pipe),
            method_name=method_name,
            options=options,
            shares=_shares(default),
        )

    @property
    def takes_speedup(self) -> bool:
        """Whether the method has a speed-up to set."""
        cls = METHODS[self.method_name]
        return cls.knows_options() and "speedup" in cls.defaults()

    def method(self, speedup: float | None) -> AnyMethod:
        """The method for the speed-up of a request.

        Raises:
            InvalidOptionError: the method has no speed-up to set.
        """
        if speedup is None:
            return make_method(self.method_name, **self.options)
        if self.takes_speedup:
            kept = {name: value for name, value in self.options.items() if name not in FOUND_BY_SPEEDUP}
            return make_method(self.method_name, **{**kept, "speedup": speedup})
        if speedup == UNTOUCHED:
            return make_method("spectrum", speedup=speedup)
        raise InvalidOptionError(
            f"speedup={speedup:g} cannot be set, since {self.method_name} decides at run time which steps it skips: "
            'leave speedup out, or pass 1 (quality "high") to evaluate every step'
        )

    def fastest(self, limit: float, steps: int | None) -> float:
        """The largest speed-up up to a limit that the method can have: of few steps, few can be skipped.

        Args:
            steps: of the request; None is the pipeline's default.
        """
        total = self.steps(Settings(steps=steps))
        if total is None or not self.takes_speedup:
            return limit
        for speedup in (limit, *(total / count for count in range(at_most(total, limit) + 1, total + 1))):
            with suppress(InvalidOptionError):
                self.method(speedup).begin(total)
                return speedup
        return limit

    def steps(self, settings: Settings) -> int | None:
        """The steps of a request, the pipeline's default included; None if its call does not say."""
        default = self.arguments.get("num_inference_steps")
        return settings.steps or (default if isinstance(default, int) else None)

    def check(self, settings: Settings) -> None:
        """Refuse settings that the pipeline or the method cannot have.

        Raises:
            InvalidOptionError: the message names the setting.
        """
        method = self.method(settings.speedup)
        if (steps := self.steps(settings)) is not None:
            method.begin(steps)
        for argument in settings.call().keys() - self.arguments.keys():
            raise InvalidOptionError(f"{argument} is nothing that {self.pipeline} takes: leave it out")
        if settings.size and any(side % self.size_factor for side in settings.size):
            nearest = "x".join(str(max(1, round(side / self.size_factor)) * self.size_factor) for side in settings.size)
            raise InvalidOptionError(
                f"size={settings.size[0]}x{settings.size[1]} does not fit {self.pipeline}, whose sides are multiples "
                f"of {self.size_factor}: pass {nearest}, or auto"
            )
        if settings.negative:
            self._check_negative(settings)

    def _check_negative(self, settings: Settings) -> None:
        """Refuse a negative prompt that the pipeline ignores, because its guidance is off."""
        name = self.pipeline
        if "negative_prompt" not in self.arguments:
            raise InvalidOptionError(f"negative_prompt is nothing that {name} takes: leave it out")
        scale = next((known for known in ("true_cfg_scale", "guidance_scale") if known in self.arguments), None)
        value = settings.call().get(scale, self.arguments[scale]) if scale else None
        if isinstance(value, int | float) and value <= 1:
            field = "guidance" if scale == "guidance_scale" else scale
            raise InvalidOptionError(
                f"negative_prompt has no effect on {name} with {scale}={value:g}: pass {field} above 1, or leave it out"
            )

    def may_share(self, settings: Settings) -> bool:
        """Whether images may share a call: what a method skips must not depend on the other images."""
        return self.shares if settings.speedup is None else _shares(self.method(settings.speedup))


def _shares(method: AnyMethod) -> bool:
    return not (method.decides_from_content or method.observes)
