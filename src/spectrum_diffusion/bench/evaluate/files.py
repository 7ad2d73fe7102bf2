"""Atomic files: written under a temporary name, then renamed.

Frames are kept losslessly, because metrics are computed from the kept files: an image as PNG, a video as a zip of PNGs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import SpectrumError
from .. import atomic

if TYPE_CHECKING:
    from PIL.Image import Image

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of every member of a zip, so that the same frames give the same bytes."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.\w+)?")
"""Names of unfinished files. Their writer is gone once another process holds the folder's lock."""


class StoreError(SpectrumError):
    """Results can't be written or read, mostly because the disk is full or read-only."""


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which replaces ``path`` at the end.

    Raises:
        StoreError: the file can't be written; ``path`` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.written(path) as temporary:
            yield temporary
    except OSError as error:
        raise StoreError(_reason(path, error)) from error


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
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, cut off, or not text
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
    """Remove the unfinished files of a killed evaluation."""
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            atomic.remove(path)


def _png(frame: Image) -> bytes:
    buffer = io.BytesIO()
    frame.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _reason(path: Path, error: OSError) -> str:
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
    return (
        f"{path} can't be written ({error.strerror or error}): {advice} and run the same command again; "
        "finished work is kept"
    )
