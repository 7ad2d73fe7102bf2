"""Spectrum: adaptive spectral feature forecasting for diffusion sampling acceleration.

Each channel of the feature is a function of time, fitted by Chebyshev polynomials of degree M with ridge regression on
all evaluated steps: ``C = (ΦᵀΦ + λI)⁻¹ΦᵀH``, forecast ``ĥ(τ*) = φ(τ*)C`` (§ 3.2); steps by the adaptive schedule of
§ 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.forecast import Weights, blend_weights, chebyshev_weights
from .base import Forecaster

MAX_DEGREE = 1_000
"""A basis of more polynomials than a run has steps fits nothing better, and takes memory."""


@dataclass(frozen=True, kw_only=True)
class Paper(Forecaster):
    """Spectrum to the letter of the paper: N 2, W 5, α 0.75, M 4, λ 0.1, at the last block.

    Attributes:
        degree: highest Chebyshev degree M.
        ridge: λ on all M+1 coefficients.
    """

    degree: int = 4
    ridge: float = 0.1

    min_points: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("degree", least=0, most=MAX_DEGREE)
        self.check_number("ridge", least=0.0)

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return chebyshev_weights(evaluated, target, total, self.degree, self.ridge)


@dataclass(frozen=True, kw_only=True)
class SpectrumBlend(Paper):
    """The paper's forecast blended with the line through the last two features.

    The ridge pulls a forecast towards zero, and the line overshoots; half of each has a smaller error than either.

    Attributes:
        blend: share of the spectral forecast, 1 is the paper's method.
    """

    blend: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("blend", least=0.0, most=1.0)

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return blend_weights(evaluated, target, total, self.degree, self.ridge, self.blend)
