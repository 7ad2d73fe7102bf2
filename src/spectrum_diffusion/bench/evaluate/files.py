"""Text, JSON and frames as atomic files.

Frames are kept losslessly, because metrics are computed from the kept files: an image as PNG, a video as a zip of PNGs.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import TEMPORARY, remove, written
from ...untrusted import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of every member of a zip, so that the same frames give the same bytes."""


def write_text(path: Path, text: str) -> None:
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    with written(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if the file is missing or is not a complete JSON object."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, cut off, or not JSON
        return None
    return value if isinstance(value, dict) else None


def encode(frames: list[Image]) -> tuple[str, bytes]:
    """Suffix and bytes of the lossless file of an image (one frame) or a video."""
    images = [_png(frame) for frame in frames]
    if len(images) == 1:
        return ".png", images[0]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, image in enumerate(images):
            archive.writestr(zipfile.ZipInfo(f"{index:04}.png", EPOCH), image)
    return ".zip", buffer.getvalue()


def decode(data: bytes, suffix: str) -> list[Image]:
    """The frames of a file that :func:`encode` wrote."""
    from PIL import Image

    if suffix == ".png":
        images = [data]
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            images = [archive.read(name) for name in sorted(archive.namelist())]
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in images]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove the unfinished files of a killed evaluation, once this process holds the folder's lock."""
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            remove(path)


def _png(frame: Image) -> bytes:
    buffer = io.BytesIO()
    frame.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()
