"""Pictures and frames for the page: a fixed number of cases, small enough to lie in one file."""

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
"""Cases shown; of more, evenly spaced ones in their order, so that nobody chooses."""
FRAMES = 6
"""Frames shown of a video, evenly spaced."""
SIDE, FRAME_SIDE = 384, 192
"""Longest side of a picture and of a video's frame, in pixels; larger ones are scaled down."""
EXACT = 160
"""Pictures up to this side are embedded without loss."""
QUALITY = 85
GAIN = 4
"""Factor by which differences are brightened."""


@dataclass(frozen=True)
class Example:
    """A picture, or the frames of a video side by side, as data URIs.

    Attributes:
        unit: its line of ``results.jsonl``.
        picture: frames side by side.
        difference: to the reference, from the kept frames, brightened; empty for the reference itself.
        frames: how many are side by side.
        size: (width, height) of one, in pixels as embedded.
    """

    unit: dict[str, Any]
    picture: str
    difference: str
    frames: int
    size: tuple[int, int]


def choose(results: Results, store: Store) -> list[list[Example]]:
    """The cases to show, each with the reference first, then the rows in their order."""
    references = [unit for unit in results.units if unit["row"] == REFERENCE]
    shown = evenly(references, CASES)
    return [_case(reference, results, store) for reference in shown]


def _case(reference: dict[str, Any], results: Results, store: Store) -> list[Example]:
    case = (reference["prompt"], reference["seed"])
    untouched = store.read_frames(reference["file"])
    found = [_example(reference, untouched, None)]
    for unit in results.units:
        if unit["row"] != REFERENCE and (unit["prompt"], unit["seed"]) == case:
            found.append(_example(unit, store.read_frames(unit["file"]), untouched))
    return found


def _example(unit: dict[str, Any], frames: list[Image], reference: list[Image] | None) -> Example:
    side = SIDE if len(frames) == 1 else FRAME_SIDE
    shown = [_small(frame, side) for frame in evenly(frames, FRAMES)]
    alike = reference is not None and (len(frames), frames[0].size) == (len(reference), reference[0].size)
    difference = ""
    if reference is not None and alike:
        pairs = zip(evenly(frames, FRAMES), evenly(reference, FRAMES), strict=True)
        difference = _uri(beside([_small(_difference(a, b), side) for a, b in pairs]))
    return Example(unit, _uri(beside(shown)), difference, len(shown), shown[0].size)


def evenly(items: list[Any], count: int) -> list[Any]:
    """At most so many items, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _small(picture: Image, side: int) -> Image:
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def _difference(picture: Image, reference: Image) -> Image:
    """What differs, brightened, (H, W, 3) in 8 bits."""
    from PIL import Image

    a, b = (np.asarray(one, dtype=np.int16) for one in (picture, reference))
    return Image.fromarray(np.clip(GAIN * np.abs(a - b), 0, 255).astype(np.uint8))


def beside(frames: list[Image]) -> Image:
    """Frames of one size, from left to right."""
    from PIL import Image

    width, height = frames[0].size
    whole = Image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        whole.paste(frame, (i * width, 0))
    return whole


def _uri(picture: Image) -> str:
    kind = "png" if picture.height <= EXACT and picture.width <= EXACT * FRAMES else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **({"quality": QUALITY} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
