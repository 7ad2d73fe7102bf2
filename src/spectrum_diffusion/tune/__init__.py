"""Calibration of an adaptive method for a model."""

from .calibrate import Changes, Magnitudes, tune

__all__ = ["Changes", "Magnitudes", "tune"]
