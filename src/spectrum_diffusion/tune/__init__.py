"""Calibration for one model: plans of weights and schedule for ``spectrum``, thresholds for adaptive methods."""

from .entry import tune
from .planning import tune_plan
from .threshold import Changes, Magnitudes, tune_threshold

__all__ = ["Changes", "Magnitudes", "tune", "tune_plan", "tune_threshold"]
