"""Metrics of images and videos, each in one place.

``METRICS["psnr"].compare(video, reference)`` is the similarity to a reference. :class:`ClipScore` tells how well an
image fits its prompt, and :class:`LatentPath` how far a run strays on its way. :mod:`.programs` runs ImageReward and
VBench.
"""

from __future__ import annotations

from importlib import import_module

from .base import Judge, Metric, PictureJudge, average
from .clip import ClipScore
from .frames import Frames, to_video
from .latents import LatentPath, latent_rmse
from .perceptual import color_video_vdp

_METRICS = (
    "pixels:PSNR",
    "pixels:SSIM",
    "pixels:MS_SSIM",
    "lpips:LPIPS",
    "perceptual:FLIP",
    "perceptual:SSIMULACRA2",
    "perceptual:CVVDP",
)
"""Files and names of the metrics of similarity. A new one is one file and one line here."""


def _metric(place: str) -> Metric:
    file, _, name = place.partition(":")
    metric: Metric = getattr(import_module(f".{file}", __name__), name)
    return metric


METRICS: dict[str, Metric] = {metric.name: metric for metric in map(_metric, _METRICS)}
"""Every metric of similarity to a reference, by name."""

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
