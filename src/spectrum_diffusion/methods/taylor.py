"""Local extrapolation: reuse of the last feature, and Taylor forecasts of any order.

Reuse is FORA's forecast ``ĥ(t) = h(s)`` (Selvaraju et al., "FORA: Fast-Forward Caching in Diffusion Transformer
Acceleration", 2024). Taylor is the polynomial through the last m+1 features, by exact divided differences (the local
forecast of Spectrum, § 3.1). Order 1 is the line through the last two.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.forecast import Weights, reuse_weights, taylor_weights
from .base import Forecaster, Method


@dataclass(frozen=True, kw_only=True)
class Reuse(Method):
    """Reuses the last evaluated feature, on Spectrum's adaptive schedule."""

    @property
    def window(self) -> int:
        return 1

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return reuse_weights(evaluated, target)


@dataclass(frozen=True, kw_only=True)
class Taylor(Forecaster):
    """Extrapolates from the last ``order`` + 1 features, on Spectrum's adaptive schedule.

    Attributes:
        order: degree of the polynomial, ≥ 0; lower while there are fewer features.
    """

    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("order", least=0)

    @property
    def window(self) -> int:
        return self.order + 1

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return taylor_weights(evaluated, target, self.order)
