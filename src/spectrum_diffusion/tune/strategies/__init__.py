"""Calibrated methods of others, as plans: each finds a schedule and weights in its own way.

All of them forecast what the scheduler is given, as the plans of ``spectrum`` do, so that they differ in schedule and
weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from .calibration import Calibration, Found

STRATEGIES: Mapping[str, str] = {
    "budcache": "searched schedule, reuse",
    "l2p": "even schedule, weights learnt from untouched runs",
    "lemica": "path whose worst gaps do the least harm, reuse",
    "dpcache": "schedule by dynamic programming over the error of a line",
    "meancache": "schedule by the error of average velocities, which it forecasts",
}
"""Names, each with what it finds."""


def found_by(name: str) -> Callable[[Calibration], Found]:
    """How a strategy finds schedule and weights."""
    return import_module(f".{name}", __name__).found  # type: ignore[no-any-return]
