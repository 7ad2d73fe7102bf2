"""DeepCache (Ma et al., "DeepCache: Accelerating Diffusion Models for Free", 2023, arXiv 2312.00858).

The skip connections of a U-Net are numbered from the outside: 0 is the first convolution's. On a skipped step only what
lies outside of connection ``branch`` runs; the feature of the upper branch that meets it is that of the last evaluated
step: ``U_m(t) = Concat(D_m(t), U_(m+1)(s))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.summary import Action
from .taylor import Reuse


@dataclass(frozen=True, kw_only=True)
class DeepCache(Reuse):
    """The deep part of a U-Net is kept, and its outermost layers run at every step (N 3: 17 of 50).

    Branches are numbered as in its package (``cache_branch_id``). What its first code calls layer 0, block 0 is
    branch 1.

    Attributes:
        branch: number of the skip connection outside of which all runs; the larger, the more is computed.
    """

    interval: int = 3
    warmup: int = 1
    slope: float = 0.0
    site: str = "deep"
    branch: int = 0

    sites: ClassVar[tuple[str, ...]] = ("deep",)
    skip: ClassVar[Action] = "partial"
    limits: ClassVar[str] = "U-Nets"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("branch", least=0)

    @property
    def site_options(self) -> tuple[Any, ...]:
        return (self.branch,)
