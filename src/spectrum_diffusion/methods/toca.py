"""ToCa (Zou et al., "Accelerating Diffusion Transformers with Token-wise Feature Caching", 2024, arXiv 2410.05317).

Between evaluated steps attention is reused, and the feed-forward runs on the ⌊r_l·N⌋ of N tokens with the highest
score ``s = a/‖a‖₂ + 0.25·n/interval``, where a is the attention that a token received at the last evaluated step and n
the number of steps since its last computation. Layer l takes ``r_l = R(1.5 − l/27)·(0.4 | 1.6)``, for blocks with
separate and with fused streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.summary import Action
from .base import Method


@dataclass(frozen=True, kw_only=True)
class ToCa(Method):
    """Reuses attention, and runs the feed-forward only on the tokens that matter (N 4, W 3: 14 of 50).

    Attributes:
        ratio: R, share of the tokens that a partial step computes, before the factors of layer and block, 0 … 1.
    """

    interval: int = 4
    warmup: int = 3
    slope: float = 0.0
    site: str = "tokens"
    ratio: float = 0.1

    sites: ClassVar[tuple[str, ...]] = ("tokens",)
    skip: ClassVar[Action] = "partial"
    in_place: ClassVar[bool] = True
    decides_from_content: ClassVar[bool] = True
    limits: ClassVar[str] = "denoisers of FLUX, SD3, Wan and HunyuanVideo, with PyTorch's own attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("ratio", least=0.0, most=1.0)

    @property
    def window(self) -> int:
        return 1

    @property
    def site_options(self) -> tuple[Any, ...]:
        return (self.ratio, self.interval)
