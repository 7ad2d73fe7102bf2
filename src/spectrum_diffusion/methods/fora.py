"""FORA: fast-forward caching in diffusion transformer acceleration (Selvaraju et al., 2024, arXiv 2407.01425).

Every N-th step is evaluated. In between, each attention and feed-forward module returns its last output, before the
gate: ``ĥ(t) = h(s)``. Gates and modulation are computed at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from .taylor import Reuse


@dataclass(frozen=True, kw_only=True)
class Fora(Reuse):
    """Reuses the output of every attention and feed-forward module, on a uniform schedule (N 4, W 1: 13 of 50)."""

    interval: int = 4
    warmup: int = 1
    slope: float = 0.0
    site: str = "module"
