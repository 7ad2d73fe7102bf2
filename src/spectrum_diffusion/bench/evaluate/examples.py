"""Example images for the report: a fixed number of cases, small enough to embed in one file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .request import REFERENCE
from .results import Results
from .store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

CASES = 8
"""Cases shown. They are evenly spaced in the order of all cases, so that nobody selects them."""
FRAMES = 6
"""Frames shown of a video, evenly spaced."""
SIDE, FRAME_SIDE = 384, 192
"""Longest side of an image and of a video's frame in pixels; larger ones are scaled down."""
EXACT = 160
"""Images up to this side are embedded losslessly."""
JPEG_QUALITY = 85
GAIN = 4
"""Factor by which differences are brightened."""


@dataclass(frozen=True)
class Example:
    """An image, or the frames of a video side by side, as data URIs.

    Attributes:
        unit: its line of ``results.jsonl``.
        image: the frames side by side.
        difference: the brightened difference of the kept frames to the reference; empty for the reference itself.
        frames: how many frames are side by side.
        size: (width, height) of an embedded frame in pixels.
    """

    unit: dict[str, Any]
    image: str
    difference: str
    frames: int
    size: tuple[int, int]


def choose(results: Results, store: Store) -> list[list[Example]]:
    """The cases to show: the reference first, then the rows in their order."""
    references = [unit for unit in results.units if unit["row"] == REFERENCE]
    return [_case(reference, results, store) for reference in evenly(references, CASES)]


def _case(reference: dict[str, Any], results: Results, store: Store) -> list[Example]:
    case = (reference["prompt"], reference["seed"])
    frames = store.read_frames(reference["file"])
    units = [unit for unit in results.units if (unit["prompt"], unit["seed"]) == case and unit["row"] != REFERENCE]
    others = [_example(unit, store.read_frames(unit["file"]), frames) for unit in units]
    return [_example(reference, frames, None), *others]


def _example(unit: dict[str, Any], frames: list[Image], reference: list[Image] | None) -> Example:
    side = SIDE if len(frames) == 1 else FRAME_SIDE
    shown = [_small(frame, side) for frame in evenly(frames, FRAMES)]
    comparable = reference is not None and (len(frames), frames[0].size) == (len(reference), reference[0].size)
    difference = ""
    if reference is not None and comparable:
        pairs = zip(evenly(frames, FRAMES), evenly(reference, FRAMES), strict=True)
        difference = _uri(beside([_small(_difference(a, b), side) for a, b in pairs]))
    return Example(unit, _uri(beside(shown)), difference, len(shown), shown[0].size)


def evenly(items: list[Any], count: int) -> list[Any]:
    """At most that many items, including the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _small(image: Image, side: int) -> Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _difference(image: Image, reference: Image) -> Image:
    """The brightened difference, (H, W, 3) in 8 bits."""
    from PIL import Image

    a, b = (np.asarray(pixels, dtype=np.int16) for pixels in (image, reference))
    return Image.fromarray(np.clip(GAIN * np.abs(a - b), 0, 255).astype(np.uint8))


def beside(frames: list[Image]) -> Image:
    """Frames of the same size, side by side."""
    from PIL import Image

    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * width, 0))
    return strip


def _uri(image: Image) -> str:
    kind = "png" if image.height <= EXACT and image.width <= EXACT * FRAMES else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": JPEG_QUALITY} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
