"""MagCache (Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", 2025, arXiv 2506.09045).

Let r be the residual of all blocks, and γ_t the mean over tokens of ``‖r_t‖ / ‖r_(t−1)‖``. γ_t hardly depends on the
prompt and is measured once for a model. Each step since the last evaluated one updates ``γ *= γ_t``, ``e += |1 − γ|``.
While ``e ≤ δ``, and for at most K steps in a row, the last residual is reused. The first ``R·T`` steps are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core.decider import Decider
from .adaptive import AdaptiveMethod, fitted


@dataclass(frozen=True, kw_only=True)
class MagCache(AdaptiveMethod):
    """Reuses the residual of all blocks while its magnitude is known to change little.

    Attributes:
        threshold: δ, the accumulated error up to which steps are skipped.
        limit: K, how many steps in a row may be skipped, ≥ 1.
        retention: R, share of the steps that are evaluated at the start, 0 … 1.
        ratios: γ_t of each step of the calibration; default: those calibrated for the model. A run with another number
            of steps uses those of the nearest steps.
    """

    threshold: float = 0.24
    limit: int = 5
    retention: float = 0.1
    site: str = "residual"
    ratios: tuple[float, ...] | None = None

    sites: ClassVar[tuple[str, ...]] = ("residual",)
    limits: ClassVar[str] = "transformers in the table, with calibration"
    decides_from_content: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("limit", least=1)
        self.check_number("retention", least=0.0, most=1.0)
        if self.ratios is not None:
            self.check_numbers("ratios", least=0.0)

    def fitted(self, denoiser: str) -> MagCache:
        return fitted(self, "magcache", denoiser, ("ratios",))

    def forced(self, step: int, total: int) -> bool:
        return super().forced(step, total) or step < int(self.retention * total + 0.5)

    def decider(self, total: int) -> AccumulatedError:
        assert self.ratios is not None
        return AccumulatedError(nearest(self.ratios, total), self.threshold, self.limit)


class AccumulatedError(Decider):
    """γ and e of one branch. Its decisions depend only on the steps."""

    def __init__(self, ratios: Sequence[float], threshold: float, limit: int) -> None:
        self.ratios, self.threshold, self.limit = ratios, threshold, limit
        self.reset()

    def reset(self) -> None:
        self.ratio, self.error, self.skipped = 1.0, 0.0, 0

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        if may_skip:
            self.ratio *= self.ratios[step]
            self.error += abs(1.0 - self.ratio)
            self.skipped += 1
            if self.error <= self.threshold and self.skipped <= self.limit:
                return True
        self.reset()
        return False


def nearest(ratios: Sequence[float], total: int) -> list[float]:
    """The ratios of a run of ``total`` steps, (T,): those of the nearest steps of the calibration."""
    if total == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (total - 1)
    return [ratios[round(step * scale)] for step in range(total)]
