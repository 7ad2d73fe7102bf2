"""Calibration for one model: plans of weights and schedule for ``spectrum``, thresholds for adaptive methods."""

from .calibrate import Changes, Magnitudes, tune_threshold
from .entry import tune

__all__ = ["Changes", "Magnitudes", "tune", "tune_threshold"]
