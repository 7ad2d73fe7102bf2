"""Files: checked before the work, written whole or not at all, pictures with their provenance."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench import mp4
from ..bench.atomic import written
from .guard import MistakeError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4",)
QUALITY = 95


def check_output(path: Path) -> None:
    """Raise :class:`MistakeError` if no picture or video can be written there."""
    suffix = path.suffix.lower()
    if suffix not in PICTURES + VIDEOS:
        raise MistakeError(f"--output {path} has no known extension: end it with one of {', '.join(PICTURES + VIDEOS)}")
    if path.is_dir():
        raise MistakeError(f"--output {path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise MistakeError(f"--output {path}: there is no folder {path.parent}: make it first")
    _check_writable(path.parent)
    if suffix in VIDEOS and not mp4.can_write():
        raise MistakeError("writing mp4 needs imageio-ffmpeg: pip install 'spectrum-diffusion[video]'")


def check_json(path: Path) -> None:
    """Raise :class:`MistakeError` if no JSON file can be written there."""
    if path.suffix.lower() != ".json":
        raise MistakeError(f"--output {path} is no name of a JSON file: end it with .json")
    if path.is_dir() or not path.parent.is_dir():
        raise MistakeError(
            f"--output {path} can't be written: there is no folder {path.parent}, or a folder of its name"
        )
    _check_writable(path.parent)


def check_folder(folder: Path) -> None:
    """Raise :class:`MistakeError` if the folder is none or can't be made."""
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise MistakeError(f"--output {folder}: {above} is a file, a folder is needed: give another name")
    _check_writable(above)


def numbered(path: Path, count: int) -> list[Path]:
    """Where each of ``count`` outputs goes: ``{index}`` is filled in, else several get -0, -1, …"""
    if "{index}" in path.name:
        return [path.with_name(path.name.replace("{index}", str(i))) for i in range(count)]
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(count)]


def save(path: Path, frames: list[Image], provenance: dict[str, Any], fps: int) -> None:
    """Write one picture, or a video of several frames."""
    if path.suffix.lower() in VIDEOS:
        with written(path) as temporary:
            mp4.write(temporary, frames, fps)
    else:
        save_picture(path, frames[0], provenance)


def save_picture(path: Path, picture: Image, provenance: dict[str, Any]) -> None:
    """Write a picture; a PNG gets its provenance as text chunks "spectrum" (JSON) and "prompt"."""
    options: dict[str, Any] = {"quality": QUALITY}
    if path.suffix.lower() == ".png":
        options = {"pnginfo": _png_text(provenance)}
    with written(path) as temporary:
        picture.convert("RGB").save(temporary, **options)


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    with written(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _png_text(provenance: dict[str, Any]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("spectrum", json.dumps(provenance))
    if prompt := provenance.get("prompt"):
        info.add_text("prompt", prompt)
    return info


def _check_writable(folder: Path) -> None:
    # Trying is the one sure test: access rights say little about read-only or full file systems.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MistakeError(f"--output: nothing can be written in {folder} ({error.strerror}): choose another") from None
