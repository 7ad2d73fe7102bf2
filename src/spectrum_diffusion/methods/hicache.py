"""HiCache (Feng et al., "HiCache: Training-free Acceleration of Diffusion Models via Hermite Polynomial-based Feature
Caching", 2025, arXiv 2508.16984): Hermite polynomials in place of powers.

TaylorSeer's forecast with the power ``kⁱ`` replaced by the contracted Hermite polynomial ``σⁱ H_i(σk)``, which grows
more slowly for σ < 1: ``Σ D_i σⁱ H_i(σk) / i!``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.forecast import Weights, hermite_weights
from .taylorseer import TaylorSeer


@dataclass(frozen=True, kw_only=True)
class HiCache(TaylorSeer):
    """Sums TaylorSeer's differences with contracted Hermite polynomials, on its schedule (N 4, W 5: 16 of 50).

    Attributes:
        contraction: σ, 0 … 1, which scales the argument of the polynomials.
    """

    order: int = 2
    contraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("contraction", least=0.0, most=1.0)

    def weights_at(self, steps: Sequence[int], target: int, axis: Sequence[float]) -> Weights:
        start = min(self.warmup, len(axis)) - 1
        times = tuple(axis[step] for step in steps)
        return hermite_weights(times, axis[target], self.order, axis[start], self.contraction)
