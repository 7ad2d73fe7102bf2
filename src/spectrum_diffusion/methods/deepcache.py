"""DeepCache (Ma et al., "DeepCache: Accelerating Diffusion Models for Free", 2023, arXiv 2312.00858).

The skip connections of a U-Net are numbered from the outside: 0 is that of the first convolution. A skipped step runs
only the layers outside connection ``branch``, and takes the feature of the inner layers from the last evaluated step s:
``U_m(t) = Concat(D_m(t), U_(m+1)(s))``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.summary import Action
from .taylor import Reuse


@dataclass(frozen=True, kw_only=True)
class DeepCache(Reuse):
    """Reuses the output of the deep part of a U-Net, and runs its outer layers at every step (N 3: 17 of 50).

    Branches are numbered as in the DeepCache package (``cache_branch_id``). Layer 0, block 0 of its first code is
    branch 1.

    Attributes:
        branch: number of the skip connection outside which all layers run, ≥ 0; a larger one computes more.
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
