"""Calibration of a method on a model."""

from .calibrate import Changes, Magnitudes, tune

__all__ = ["Changes", "Magnitudes", "tune"]
