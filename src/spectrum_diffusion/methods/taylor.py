"""Local extrapolation at one site: reuse of the last feature, and Taylor forecasts of any order.

Reuse is FORA's forecast (Selvaraju et al., "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", 2024):
``ĥ(t) = h(s)``. Taylor is the polynomial through the last m+1 features, by exact divided differences (the local
forecast of Spectrum's § 3.1; order 1 is the line through the last two).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.forecast import Weights, reuse_weights, taylor_weights
from .base import Forecaster, Method


@dataclass(frozen=True, kw_only=True)
class Reuse(Method):
    """The last evaluated feature, unchanged, on Spectrum's adaptive schedule."""

    @property
    def window(self) -> int:
        return 1

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return reuse_weights(evaluated, target)


@dataclass(frozen=True, kw_only=True)
class Taylor(Forecaster):
    """Extrapolation from the last ``order`` + 1 features, on Spectrum's adaptive schedule.

    Attributes:
        order: degree of the extrapolating polynomial; lowered while fewer features are there.
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
