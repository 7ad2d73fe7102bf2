"""TaylorSeer: from reusing to forecasting (Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with
TaylorSeers", 2025, arXiv 2503.06923).

The output of each module is extrapolated by k steps from the last evaluated step s: ``Σ D_i kⁱ / i!``, with the
recursive differences ``D_0 = h``, ``D_(i+1) = (D_i − D_i⁻)/(s − s⁻)`` of the public code, computed from step W−1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.forecast import Weights, taylorseer_weights
from .base import Forecaster


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(Forecaster):
    """Taylor forecasts of every module's output by recursive differences, on a uniform schedule (N 4, W 5: 16 of 50).

    Attributes:
        order: highest difference used, ≥ 0; lower while there are fewer evaluated steps.
    """

    interval: int = 4
    warmup: int = 5
    slope: float = 0.0
    site: str = "module"
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("order", least=0)

    @property
    def window(self) -> int:
        return self.order + 1

    def weights_at(self, steps: Sequence[int], target: int, axis: Sequence[float]) -> Weights:
        start = min(self.warmup, len(axis)) - 1
        return taylorseer_weights(tuple(axis[step] for step in steps), axis[target], self.order, axis[start])
