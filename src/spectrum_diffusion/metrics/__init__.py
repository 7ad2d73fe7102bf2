"""Metrics of pictures and videos, each in one place: ``METRICS["psnr"].compare(video, reference)``."""

from __future__ import annotations

from .base import Metric, average
from .frames import Frames, to_video
from .pixels import MS_SSIM, PSNR, SSIM

METRICS: dict[str, Metric] = {metric.name: metric for metric in (PSNR, SSIM, MS_SSIM)}
"""Every metric of likeness to a reference, by name."""

__all__ = ["METRICS", "Frames", "Metric", "average", "to_video"]
