"""A path whose outputs are sums with weights that a plan fixed for each step beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .forecast import taylor_weights
from .history import weighted_sum
from .path import Path
from .replay import StepCall

Rows = Sequence[Sequence[float]]
"""For each step t the weights of the outputs evaluated up to t."""


class PlannedPath(Path):
    """Gives the scheduler ``Σ w_tk v_k`` at every step t, where v_k are the outputs evaluated so far.

    The weights of an evaluated step count too: they correct there what the skipped steps before it got wrong.

    Args:
        evaluated: the steps that the plan evaluates, increasing.
        weights: a row for each step, with a weight for each step of ``evaluated`` up to it.
    """

    def __init__(self, evaluated: Sequence[int], weights: Rows) -> None:
        super().__init__(gain=0.0)
        self.window = None
        self._evaluated, self._weights = evaluated, weights

    def evaluated(self, step: int, call: StepCall) -> torch.Tensor:
        self.append(step, (call.output,))
        return self._planned(step) if self._fits(step) else call.output

    def skipped(self, step: int, call: StepCall) -> torch.Tensor:
        return self._planned(step)

    def _fits(self, step: int) -> bool:
        """Whether exactly the outputs are kept for which the plan has weights."""
        return self.steps == [kept for kept in self._evaluated if kept <= step]

    def _planned(self, step: int) -> torch.Tensor:
        # Where guidance changed, outputs before that are gone, and others are there.
        weights = self._weights[step] if self._fits(step) else taylor_weights(self.steps, step, 1)
        return weighted_sum(weights, [feature[0] for feature in self.features])
