"""ToCa (Zou et al., "Accelerating Diffusion Transformers with Token-wise Feature Caching", 2024, arXiv 2410.05317).

Between evaluated steps attention is kept, and the feed-forward runs for the ⌊r_l·N⌋ tokens of highest score
``s = a/‖a‖₂ + 0.25·n/N``, with a the attention that a token received at the last evaluated step and n the number of
steps since it was last computed. Layer l takes ``r_l = R(1.5 − l/27)·(0.4 | 1.6)``, for blocks with separate and with
fused streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.summary import Action
from .base import Method


@dataclass(frozen=True, kw_only=True)
class ToCa(Method):
    """Attention is kept, and of the feed-forward only the tokens that matter are computed (N 4, W 3: 14 of 50).

    Attributes:
        ratio: R, share of the tokens that is computed on a partial step, before the factors of layer and block.
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
