"""TeaCache (Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", 2024,
arXiv 2411.19108).

Every step adds ``A += p(mean|m_t − m_(t−1)| / mean|m_(t−1)|)``, where m is the image tokens as the first block's
adaptive norm modulates them (Wan: the time embedding) and p a polynomial fitted for the model. While ``A < δ`` the
residual of the last evaluated step (tokens after the last block − tokens before the first) is reused; otherwise the
step is evaluated and ``A = 0``. The first and the last step are always evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..core.decider import Decider
from .adaptive import AdaptiveMethod, fitted, relative_change

CAREFUL = 0.25
"""δ if none was calibrated: the lowest that was published for FLUX.1."""


@dataclass(frozen=True, kw_only=True)
class TeaCache(AdaptiveMethod):
    """Reuses the residual of all blocks while the modulated input has changed little.

    Attributes:
        threshold: δ, the accumulated change up to which steps are skipped; default: the one that was published or
            calibrated for the model.
        coefficients: of the polynomial p, highest power first; default: those calibrated for the model.
    """

    threshold: float | None = None
    site: str = "residual"
    coefficients: tuple[float, ...] | None = None

    sites: ClassVar[tuple[str, ...]] = ("residual",)
    limits: ClassVar[str] = "transformers in the table, with calibration; published for FLUX.1, HunyuanVideo and Wan2.1"
    forces_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients is not None:
            self.check_numbers("coefficients")

    def fitted(self, denoiser: str) -> TeaCache:
        return fitted(self, "teacache", denoiser, ("coefficients", "threshold"))

    def decider(self, total: int) -> AccumulatedChange:
        assert self.coefficients is not None
        return AccumulatedChange(self.coefficients, CAREFUL if self.threshold is None else self.threshold)


class AccumulatedChange(Decider):
    """A of one branch."""

    def __init__(self, coefficients: tuple[float, ...], threshold: float) -> None:
        self.coefficients, self.threshold = coefficients, threshold
        self.reset()

    def reset(self) -> None:
        self.previous: torch.Tensor | None = None
        self.accumulated = 0.0

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        previous, self.previous = self.previous, signal.detach().clone()
        if may_skip and previous is not None:
            self.accumulated += float(np.polyval(self.coefficients, relative_change(signal, previous)))
            if self.accumulated < self.threshold:
                return True
        self.accumulated = 0.0
        return False

    def kept(self) -> tuple[torch.Tensor | None, ...]:
        return (self.previous,)
