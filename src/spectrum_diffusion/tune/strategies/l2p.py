"""L2P: weights of all kept outputs, learnt from untouched runs, on an even schedule (2026, arXiv 2604.26365).

Its ``ĥ_t = Σ W_ts h_s`` is trained by gradients; the optimum over the evaluated set S has the closed form
``w = (G_SS + λI)⁻¹ G_St`` with the Gram matrix G of the outputs of untouched runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration, Found, even, rows_of

RIDGE = 1e-3
"""λ relative to the mean of the diagonal of G_SS."""


def found(calibration: Calibration) -> Found:
    outputs = calibration.outputs  # (T, N)
    gram = (outputs @ outputs.T).double().numpy()  # (T, T)

    def learnt(kept: Sequence[int], step: int) -> NDArray[np.float64]:
        G = gram[np.ix_(kept, kept)]  # (K, K)
        return np.linalg.solve(G + RIDGE * np.trace(G) / len(kept) * np.eye(len(kept)), gram[kept, step])

    schedule = even(calibration.steps, calibration.count)
    return schedule, rows_of(schedule, calibration.steps, learnt)
