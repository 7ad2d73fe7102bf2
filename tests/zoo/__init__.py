"""A tiny random configuration of every denoiser class of diffusers: `ZOO`, keyed by class name.

`VARIANTS` holds further configurations of some classes, for ways through their forward that the first does
not take.
"""

from __future__ import annotations

from . import image, other, unets, video
from .entry import Entry, sample_of, samples_of

ZOO: dict[str, Entry] = {
    entry.cls: entry for entry in sorted(image.IMAGE + video.VIDEO + other.OTHER + unets.UNETS, key=lambda e: e.cls)
}
VARIANTS: dict[str, Entry] = {entry.name: entry for entry in image.VARIANTS + video.VARIANTS + unets.VARIANTS}

__all__ = ["VARIANTS", "ZOO", "Entry", "sample_of", "samples_of"]
