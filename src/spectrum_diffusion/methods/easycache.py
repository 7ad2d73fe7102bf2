"""EasyCache (Zhou et al., "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching",
2025, arXiv 2507.02860).

Let x be the sample that the denoiser takes and v its output at the last evaluated step. Every step adds
``E += k·mean|Δx| / mean|v|``, where ``k = mean|Δv| / mean|Δx|`` between the last two evaluated steps. While ``E < τ``
the output is x plus the last evaluated ``v − x``; otherwise the step is evaluated and ``E = 0``. The first W steps and
the last step are always evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core.decider import Decider
from ..core.history import Feature, joined
from .adaptive import AdaptiveMethod


@dataclass(frozen=True, kw_only=True)
class EasyCache(AdaptiveMethod):
    """Reuses output minus sample while the output is expected to change little; works with any denoiser.

    Each guidance branch decides for itself; in the public code the first branch decides for both.

    Attributes:
        threshold: τ, the expected relative change of the output up to which steps are skipped.
    """

    threshold: float = 0.05
    warmup: int = 10
    site: str = "output_residual"

    sites: ClassVar[tuple[str, ...]] = ("output_residual",)
    forces_last: ClassVar[bool] = True
    limits: ClassVar[str] = "every denoiser whose output has the shape of its sample"

    def decider(self, total: int) -> ExpectedChange:
        return ExpectedChange(self.threshold)


class ExpectedChange(Decider):
    """E of one branch, and how fast its output changes with its sample."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.previous: torch.Tensor | None = None  # the sample of the last step
        self.sample: torch.Tensor | None = None  # the sample and output of the last evaluated step
        self.output: torch.Tensor | None = None
        self.rate: float | None = None  # k
        self.expected = 0.0

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        previous, self.previous = self.previous, signal.detach().clone()
        if may_skip and self.rate is not None and previous is not None and self.output is not None:
            self.expected += self.rate * float(distance(signal, previous) / mean(self.output))
            if self.expected < self.threshold:
                return True
        self.expected = 0.0
        return False

    def learn(self, signal: torch.Tensor, feature: Feature, output: Feature) -> None:
        now = joined(list(output))
        if self.output is not None and self.sample is not None:
            self.rate = float(distance(now, self.output) / distance(signal, self.sample))
        self.sample, self.output = self.previous, now.detach().clone()

    def kept(self) -> tuple[torch.Tensor | None, ...]:
        return (self.previous, self.sample, self.output)


def mean(value: torch.Tensor) -> torch.Tensor:
    """``mean|x|``."""
    return value.abs().mean(dtype=torch.float32)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``mean|a − b|``."""
    return mean(a - b)
