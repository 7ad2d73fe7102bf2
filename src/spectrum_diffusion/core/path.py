"""Forecasts along one sampling path that learn from hindsight, and the correction of the path.

A sampler asks for an output at every step; only some are evaluated. Between them an output is extrapolated along the
line through the last two evaluated outputs, damped by how well that line foretold the latest evaluated output. Once
the next output is evaluated, the outputs of the gap can be interpolated instead, and the sampler's steps over the gap
repeated with them (a predictor-corrector scheme without a second evaluation, PEC).

All of it works for each sample of the batch by itself and on the device of the outputs, without synchronization.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from .forecast import interpolation_weights
from .history import weighted_sum

BISECTIONS = 40
"""Halvings of the range in which the rate of the damping is sought: more than float32 resolves."""
FASTEST = 1e3
"""Largest rate κg of the damping; its α is 1e-3."""
NODES = 3
"""Evaluated outputs through which a correction interpolates."""


class Path:
    """The latest evaluated outputs of a path, and how well the line through them foretold the next one.

    Args:
        gain: strength of the correction for a given agreement α, ``min(1, gain·α)``; 0 corrects nothing.
    """

    def __init__(self, gain: float = 2.0) -> None:
        self.gain = gain
        self._steps: deque[int] = deque(maxlen=NODES)
        self._outputs: deque[torch.Tensor] = deque(maxlen=NODES)
        self._agreement: torch.Tensor | None = None  # (B,)

    @property
    def steps(self) -> list[int]:
        """The evaluated steps that are kept, oldest first."""
        return list(self._steps)

    @property
    def nbytes(self) -> int:
        """Memory of the outputs that are kept, in bytes."""
        return sum(output.nbytes for output in self._outputs)

    def clear(self) -> None:
        """Let go of the outputs."""
        self._steps.clear()
        self._outputs.clear()
        self._agreement = None

    def observe(self, step: int, output: torch.Tensor) -> None:
        """Keep the evaluated output of a step, (B, …), and learn how well the line foretold it."""
        self._steps.append(step)
        self._outputs.append(output.detach().clone())
        if len(self._steps) == NODES:
            self._agreement = agreement(self._steps, self._outputs)

    def forecast(self, step: int) -> torch.Tensor:
        """The output of a later step: the last one plus the damped line; the last one until hindsight exists."""
        last = self._outputs[-1]
        if self._agreement is None:
            return last
        (before, latest), gap = list(self._outputs)[-2:], self._steps[-1] - self._steps[-2]
        reach = damped_reach(self._agreement, gap, step - self._steps[-1]) / gap  # (B,)
        return (latest.float() + over_batch(reach, latest) * (latest.float() - before.float())).to(latest.dtype)

    def corrected(self, step: int, used: torch.Tensor) -> torch.Tensor:
        """The output of an earlier step of the last gap, moved from what was ``used`` towards the interpolation."""
        weights = interpolation_weights(self.steps, step)
        interpolated = weighted_sum(weights, list(self._outputs)).float()
        return (used.float() + over_batch(self.strength(used), used) * (interpolated - used.float())).to(used.dtype)

    def strength(self, like: torch.Tensor) -> torch.Tensor:
        """Share of the correction that is applied, (B,)."""
        if self._agreement is None:
            return like.new_full((like.shape[0],), min(1.0, self.gain), dtype=torch.float32)
        return (self.gain * self._agreement).clamp(max=1.0)


def agreement(steps: Sequence[int], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """``α = (r·d)/(d·d)`` within 0 … 1 of the last of three outputs: r is its change, d the change the line foretold.

    Returns:
        float32, (B,): 1 where the line was right, 0 where it led nowhere.
    """
    (first, second, third), (a, b, c) = list(steps)[-3:], [output.float().flatten(1) for output in list(outputs)[-3:]]
    foretold = (b - a) * ((third - second) / (second - first))  # (B, N)
    actual = c - b  # (B, N)
    return ((actual * foretold).sum(1) / (foretold * foretold).sum(1).clamp_min(1e-20)).clamp(0.0, 1.0)


def damped_reach(agreement: torch.Tensor, gap: int, horizon: int) -> torch.Tensor:
    """Distance ``(1 − e^(−κh))/κ`` that a damped line covers within a horizon of h steps.

    κ is such that the line over the last gap of g steps would have covered the share α of it:
    ``α = (1 − e^(−κg))/(κg)``. No damping (α = 1) gives h; α → 0 gives almost nothing.

    Args:
        agreement: α, (B,).
        gap: g ≥ 1.
        horizon: h ≥ 0.

    Returns:
        (B,), in steps.
    """
    low, high = torch.zeros_like(agreement), torch.full_like(agreement, FASTEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_slow = _share(middle) > agreement
        low, high = torch.where(too_slow, middle, low), torch.where(too_slow, high, middle)
    rate = (low + high) / 2 / gap  # κ
    return horizon * _share(rate * horizon)


def _share(rate: torch.Tensor) -> torch.Tensor:
    """``(1 − e^(−x))/x``, which is 1 at 0."""
    return torch.where(rate > 1e-4, -torch.expm1(-rate) / rate.clamp_min(1e-4), 1 - rate / 2)


def over_batch(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values for each sample, (B,), shaped to multiply a tensor (B, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))
