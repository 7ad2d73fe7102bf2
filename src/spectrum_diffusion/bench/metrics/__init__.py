"""Metrics of pictures and videos, each in one place.

``METRICS["psnr"].compare(video, reference)`` is the likeness to a reference, :class:`ClipScore` how a picture fits its
prompt, :class:`LatentPath` how far a run strays on its way, and :mod:`.programs` runs ImageReward and VBench.
"""

from __future__ import annotations

from .base import Judge, Metric, PictureJudge, average
from .clip import ClipScore
from .frames import Frames, to_video
from .latents import LatentPath, latent_rmse
from .lpips import LPIPS
from .perceptual import CVVDP, FLIP, SSIMULACRA2, color_video_vdp
from .pixels import MS_SSIM, PSNR, SSIM

METRICS: dict[str, Metric] = {metric.name: metric for metric in (PSNR, SSIM, MS_SSIM, LPIPS, FLIP, SSIMULACRA2, CVVDP)}
"""Every metric of likeness to a reference, by name."""

__all__ = [
    "METRICS",
    "ClipScore",
    "Frames",
    "Judge",
    "LatentPath",
    "Metric",
    "PictureJudge",
    "average",
    "color_video_vdp",
    "latent_rmse",
    "to_video",
]
