"""Runs the pipeline: images that share their settings in one call, each with the noise of its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ..core.run import OnStep
from ..core.summary import Summary
from ..handle import enable_method
from ..methods import make_method
from ..plan import Plan
from .abilities import Abilities, Settings

if TYPE_CHECKING:
    from PIL.Image import Image


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


class LostError(Exception):
    """The process of an engine died."""


class AnyEngine(Protocol):
    """What generates images, in this process or another one."""

    abilities: Abilities

    def generate(
        self, settings: Settings, items: Sequence[Item], on_progress: Callable[[int, int], None]
    ) -> list[Generated]:
        """Generate images in one call of the pipeline.

        Args:
            on_progress: called after each step with the steps done and their number; an exception that it raises
                ends the generation.

        Raises:
            LostError: the engine's process died. :meth:`restore` starts another one.
        """

    def restore(self, is_over: Callable[[], bool]) -> bool:
        """Make the engine ready again after it was lost; False if ``is_over`` was true before."""


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
        with enable_method(pipe, make_method(method, **options), plan=plan) as handle:
            self.abilities = Abilities.of(pipe, method, options, handle.method)
        self._pipe, self._plan = pipe, plan

    def restore(self, is_over: Callable[[], bool]) -> bool:
        """It ends with this process, so there is nothing to restore."""
        return True

    def generate(
        self, settings: Settings, items: Sequence[Item], on_progress: Callable[[int, int], None]
    ) -> list[Generated]:
        """Generate images in one call of the pipeline, as :class:`AnyEngine` says."""
        extra = {"negative_prompt": [item.negative_prompt for item in items]} if settings.negative else {}
        plan = self._plan if settings.speedup is None else None
        with enable_method(
            self._pipe, self.abilities.method(settings.speedup), plan=plan, on_step=self._reporting(on_progress)
        ) as handle:
            output = self._pipe(
                prompt=[item.prompt for item in items],
                # On the CPU, so that a seed gives the same noise on every machine.
                generator=[torch.Generator("cpu").manual_seed(item.seed) for item in items],
                output_type="np",
                **settings.call(),
                **extra,
            )
            summary = handle.summary()
        steps = self.abilities.steps(settings) or summary.steps
        return [Generated(as_image(pixels), summary, steps) for pixels in output.images]

    def _reporting(self, on_progress: Callable[[int, int], None]) -> OnStep:
        last = -1

        def report(step: int, branch: str, action: str, reason: str) -> None:
            nonlocal last
            if step != last:  # a step has a call for each guidance branch
                last = step
                on_progress(step + 1, max(step + 1, len(getattr(self._pipe.scheduler, "timesteps", ()))))

        return report


def as_image(pixels: np.ndarray[Any, Any]) -> Image | None:
    """The image of an array, (H, W, 3) within 0 … 1, rounded as diffusers does; None if it is not finite."""
    from PIL import Image

    if not np.isfinite(pixels).all():
        return None
    return Image.fromarray((pixels * 255).round().astype("uint8"))
