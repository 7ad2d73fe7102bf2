"""How a pipeline's guidance combines the outputs of its branches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.planned import GUIDANCE_TOLERANCE

ONE_BRANCH = (1.0,)
"""The coefficients of a guided output whose branches are not told apart."""


class Guidance:
    """Finds the coefficients a_b of ``guided = Σ a_b v_b`` by least squares over all steps of untouched runs."""

    def __init__(self) -> None:
        self._grams: list[NDArray[np.float64]] = []  # of branches and guided output at each step, (n + 1, n + 1)

    def observe(self, branches: Sequence[torch.Tensor], guided: torch.Tensor) -> None:
        """Take a step into account.

        Args:
            branches: n outputs, each (B, …); none if they can't be told apart.
            guided: what the scheduler is given, (B, …).
        """
        columns = torch.stack([tensor.flatten().float() for tensor in (*branches, guided)])  # (n + 1, F)
        self._grams.append((columns @ columns.T).double().cpu().numpy())

    @property
    def coefficients(self) -> tuple[float, ...]:
        """That of each branch; :data:`ONE_BRANCH` for one branch, or where guidance is not linear or changes."""
        if len({len(gram) for gram in self._grams}) != 1 or len(self._grams[0]) < 3:
            return ONE_BRANCH
        total = np.sum(self._grams, axis=0)
        gram, right, square = total[:-1, :-1], total[:-1, -1], total[-1, -1]
        coefficients = np.linalg.lstsq(gram, right, rcond=1e-9)[0]
        missed = square - 2 * coefficients @ right + coefficients @ gram @ coefficients
        if square <= 0 or missed > GUIDANCE_TOLERANCE**2 * square:
            return ONE_BRANCH
        return tuple(float(f"{coefficient:.6g}") for coefficient in coefficients)
