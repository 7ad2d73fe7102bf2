"""A path whose outputs are sums with weights that a plan fixed for each step beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import InvalidOptionError
from .forecast import taylor_weights
from .history import Feature, weighted_sum
from .path import Path
from .replay import StepCall
from .words import misfit

Rows = Sequence[Sequence[float]]
"""For each step t the weights of the outputs evaluated up to t; with per-branch weights, those of all branches of an
evaluated step, then those of the next."""
GUIDANCE_TOLERANCE = 0.03
"""Largest relative deviation of a guided output from the plan's combination of the branches; bfloat16 rounds."""


class PlannedPath(Path):
    """Gives the scheduler ``Σ w_tkb v_kb`` at every step t, where v_kb is branch b of the k-th evaluated output.

    The weights of an evaluated step count too: they correct there what the skipped steps before it got wrong. A plan
    that does not tell branches apart weighs the guided outputs.

    Args:
        evaluated: the steps that the plan evaluates, increasing, from 0 on.
        weights: a row for each step. The first one says how guidance combines the branches.
    """

    def __init__(self, evaluated: Sequence[int], weights: Rows) -> None:
        super().__init__(gain=0.0)
        self.window = None
        self._evaluated, self._weights = evaluated, weights

    def evaluated(self, step: int, call: StepCall) -> torch.Tensor:
        self.append(step, self._apart(call))
        return self._planned(step) if self._fits(step) else call.output

    def skipped(self, step: int, call: StepCall) -> torch.Tensor:
        return self._planned(step)

    @property
    def _coefficients(self) -> Sequence[float]:
        """What guidance multiplies each branch by, (branches,)."""
        return self._weights[0] if len(self._weights[0]) > 1 else (1.0,)

    def _apart(self, call: StepCall) -> Feature:
        """The outputs that the plan weighs.

        Raises:
            InvalidOptionError: the branches are not those of the plan.
        """
        if len(self._coefficients) == 1:
            return (call.output,)
        branches = call.branches
        if len(branches) != len(self._coefficients):
            raise InvalidOptionError(
                misfit(f"{len(self._coefficients)} guidance branches, but this run has {len(branches) or 'none'}")
            )
        if not len(self):
            combined = weighted_sum(self._coefficients, branches)
            if float((combined - call.output).norm()) > GUIDANCE_TOLERANCE * float(call.output.norm()):
                shown = ", ".join(f"{coefficient:.3g}" for coefficient in self._coefficients)
                raise InvalidOptionError(
                    misfit(f"guidance that combines the branches as {shown}, and this one does not")
                )
        return branches

    def _fits(self, step: int) -> bool:
        """Whether exactly the outputs are kept for which the plan has weights."""
        return self.steps == [kept for kept in self._evaluated if kept <= step]

    def _planned(self, step: int) -> torch.Tensor:
        # Where guidance changed, outputs before that are gone, and others are there.
        weights = self._weights[step] if self._fits(step) else along_line(self.steps, step, self._coefficients)
        return weighted_sum(weights, [tensor for feature in self.features for tensor in feature])


def along_line(evaluated: Sequence[int], step: int, coefficients: Sequence[float]) -> list[float]:
    """The weights of all branches' outputs with which the guided output follows the line through its last two."""
    line = taylor_weights(evaluated, step, 1)
    return [float(weight) * coefficient for weight in line for coefficient in coefficients]
