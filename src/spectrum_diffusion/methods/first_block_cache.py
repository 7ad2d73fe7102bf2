"""First-block cache (Zeyi Cheng, "First Block Cache" of ParaAttention, 2024, github.com/chengzeyi/ParaAttention; it has
no paper and follows TeaCache, arXiv 2411.19108).

The first block always runs. Let r be its residual (what it adds to the image tokens) and r′ its residual at the last
evaluated step. The other blocks are skipped while ``mean|r − r′| / mean|r′| ≤ δ``, and their last residual is reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core.decider import Decider
from ..core.history import Feature
from ..core.summary import Action
from .adaptive import AdaptiveMethod, relative_change


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache(AdaptiveMethod):
    """Runs the first block at every step, and the others only if its residual has changed.

    Attributes:
        threshold: δ, the relative change since the last evaluated step up to which steps are skipped.
    """

    threshold: float = 0.05
    site: str = "first_block"

    sites: ClassVar[tuple[str, ...]] = ("first_block",)
    skip: ClassVar[Action] = "partial"
    limits: ClassVar[str] = "transformers in the table whose blocks keep the shape of the tokens"

    def decider(self, total: int) -> ChangeSinceEvaluated:
        return ChangeSinceEvaluated(self.threshold)


class ChangeSinceEvaluated(Decider):
    """r′ of one branch."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.evaluated: torch.Tensor | None = None

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        known = self.evaluated
        return may_skip and known is not None and relative_change(signal, known) <= self.threshold

    def learn(self, signal: torch.Tensor, feature: Feature, output: Feature) -> None:
        self.evaluated = signal.detach().clone()

    def kept(self) -> tuple[torch.Tensor | None, ...]:
        return (self.evaluated,)
