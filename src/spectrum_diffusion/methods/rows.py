"""Weights written out for every step, as a plan holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.schedule import MAX_TOTAL, check_number, explicit, is_list
from ..errors import InvalidOptionError

Rows = tuple[tuple[float, ...], ...]


def check_rows(weights: Any, evaluated: Iterable[int]) -> Rows:
    """The weights as tuples: for each step of a run a row, with a weight for each evaluated step up to it.

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
        count = sum(kept <= step for kept in steps)
        if len(row) != count:
            raise InvalidOptionError(
                f"step_weights[{step}] has {len(row)} numbers, but {count} steps are evaluated up to step {step}: give "
                "one for each, or make the plan again"
            )
    return tuple(tuple(check_number("weight", weight) for weight in row) for row in rows)
