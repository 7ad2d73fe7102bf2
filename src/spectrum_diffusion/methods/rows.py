"""Weights written out for every step, as a plan holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.schedule import MAX_TOTAL, check_number, explicit, is_list
from ..errors import InvalidOptionError

Rows = tuple[tuple[float, ...], ...]

LARGEST = 1e6
"""Weights beyond this leave nothing of a sum in float32."""


def check_rows(weights: Any, evaluated: Iterable[int]) -> Rows:
    """The weights as tuples: for each step of a run a row, with a weight for each evaluated step up to it.

    Of a plan that tells guidance branches apart, a row has a weight for each branch of each evaluated step. The first
    row shows how many branches there are.

    Raises:
        InvalidOptionError: rows of other lengths, or values that are not finite numbers.
    """
    rows = [tuple(row) if is_list(row) else () for row in weights] if is_list(weights) else []
    if not 1 <= len(rows) <= MAX_TOTAL or not all(rows):
        raise InvalidOptionError(
            f"step_weights must be a list with a row for each of 1 … {MAX_TOTAL} steps, got {str(weights)[:60]}: take "
            "them from a plan of `spectrum tune`"
        )
    steps = explicit(len(rows), evaluated)
    for step, row in enumerate(rows):
        count, branches = sum(kept <= step for kept in steps), len(rows[0])
        if len(row) != count * branches:
            each = "one for each" if branches == 1 else f"{branches} for each, as in the first row"
            raise InvalidOptionError(
                f"step_weights[{step}] has {len(row)} numbers, but {count} steps are evaluated up to step {step}: give "
                f"{each}, or make the plan again"
            )
    return tuple(tuple(check_number("weight", weight, least=-LARGEST, most=LARGEST) for weight in row) for row in rows)
