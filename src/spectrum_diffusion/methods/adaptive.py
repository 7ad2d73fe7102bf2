"""Base class of adaptive methods, which decide at run time: they reuse the last feature while it changes little."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, ClassVar, TypeVar

import torch

from ..core.forecast import Weights, reuse_weights
from ..errors import InvalidOptionError
from .base import AnyMethod

W = TypeVar("W", bound="AdaptiveMethod")


@dataclass(frozen=True, kw_only=True)
class AdaptiveMethod(AnyMethod):
    """A method that reuses its last feature as long as the signal of its site has changed little.

    Attributes:
        threshold: change up to which steps are skipped; 0 evaluates every step.
        warmup: number W of steps evaluated at the start, ≥ 1.
    """

    threshold: float | None
    warmup: int = 1

    forces_last: ClassVar[bool] = False
    """Whether the last step is always evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("warmup", least=1)
        if self.threshold is not None or self.defaults()["threshold"] is not None:
            self.check_number("threshold", least=0.0)

    @property
    def window(self) -> int:
        return 1

    @property
    def decides_while_running(self) -> bool:
        return self.threshold != 0  # which asks for every step

    def forced(self, step: int, total: int) -> bool:
        """Whether the step is evaluated without asking the decider."""
        return step < self.warmup or (self.forces_last and step == total - 1)

    def evaluates(self, step: int, total: int) -> bool:
        return self.threshold == 0 or self.forced(step, total)

    def untouched(self, total: int) -> bool:
        return all(self.forced(step, total) for step in range(total))  # a threshold of 0 asks for it

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return reuse_weights(evaluated, target)


def relative_change(value: torch.Tensor, previous: torch.Tensor) -> float:
    """``mean|value − previous| / mean|previous|``, accumulated in float32."""
    change = (value - previous).abs().mean(dtype=torch.float32)
    return float(change / previous.abs().mean(dtype=torch.float32))


@functools.cache
def calibrations() -> dict[str, dict[str, Any]]:
    """Method → name of the denoiser by :func:`denoisers.identity` → its options, and their source."""
    text = resources.files(__package__).joinpath("calibrations.json").read_text(encoding="utf-8")
    options: dict[str, dict[str, Any]] = json.loads(text)
    return options


def fitted(method: W, name: str, denoiser: str, options: Sequence[str]) -> W:
    """The method, with the ``options`` that are not set taken from the calibration of the denoiser.

    Raises:
        InvalidOptionError: the first of the options is not set, and there is no calibration.
    """
    missing = [option for option in options if getattr(method, option) is None]
    known = calibrations()[name].get(denoiser, {})
    if options[0] in missing and options[0] not in known:
        raise InvalidOptionError(
            f"{name} needs {options[0]} calibrated for the denoiser, but there are none for {denoiser}: run "
            f"`spectrum tune --method {name} --model … --prompts FILE -o plan.json` once and enable with "
            f'plan="plan.json", or pass {options[0]}=[…]'
        )
    return replace(method, **{option: known[option] for option in missing if option in known})
