"""Output files: checked before the work, written whole or not at all, images with their provenance."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import written
from ..bench import mp4
from .guard import MistakeError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
ANIMATIONS = (".gif", ".webp")
VIDEOS = (".mp4", *ANIMATIONS)
PLACEHOLDERS = ("prompt", "seed", "index")
LONGEST = 48
"""Characters of a prompt that a file name holds."""
LONGEST_NAME = 240
"""Bytes of a file's name: file systems allow 255, and an unfinished file has a longer name."""
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""Names of devices on Windows, whatever their extension."""
QUALITY = 95


def check_output(path: Path) -> None:
    """Raise :class:`MistakeError` if no image or video can be written there."""
    check_suffix(path)
    for name in re.findall(r"{(\w*)}", path.name):
        if name not in PLACEHOLDERS:
            filled = ", ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS)
            raise MistakeError(f"--output {path} has the unknown placeholder {{{name}}}: use {filled}")
    if path.is_dir():
        raise MistakeError(f"--output {path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise MistakeError(f"--output {path}: there is no folder {path.parent}: create it first")
    _check_writable(path.parent)


def check_suffix(path: Path) -> None:
    """Raise :class:`MistakeError` if no image or video of this extension can be written."""
    suffix, known = path.suffix.lower(), dict.fromkeys(IMAGES + VIDEOS)
    if suffix not in known:
        raise MistakeError(
            f"--output {path} has no known extension: end it with one of {', '.join(known)}, or with none for a "
            "folder, which needs --prompts; create a folder with a dot in its name first"
        )
    if suffix == ".mp4" and not mp4.can_write():
        raise MistakeError(
            "writing mp4 needs imageio-ffmpeg: pip install 'spectrum-diffusion[video]', or write .gif or .webp"
        )


def check_kind(path: Path, makes_videos: bool) -> None:
    """Raise :class:`MistakeError` if the extension does not fit what the model makes."""
    makes, wanted = ("videos", VIDEOS) if makes_videos else ("images", IMAGES)
    if path.suffix.lower() not in wanted:
        raise MistakeError(f"--output {path}: this model makes {makes}: end the name with one of {', '.join(wanted)}")


def check_json(path: Path) -> None:
    """Raise :class:`MistakeError` if no JSON file can be written there."""
    if path.suffix.lower() != ".json":
        raise MistakeError(f"--output {path} has no .json extension: end it with .json")
    if path.is_dir() or not path.parent.is_dir():
        raise MistakeError(
            f"--output {path} can't be written: there is no folder {path.parent}, or a folder of its name"
        )
    _check_writable(path.parent)


def check_folder(folder: Path) -> None:
    """Raise :class:`MistakeError` if the path is not a folder or can't be created."""
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise MistakeError(f"--output {folder}: {above} is a file, but a folder is needed: give another name")
    _check_writable(above)


def paths_for(path: Path, prompts: Sequence[str], seed: int) -> list[Path]:
    """Where the image or video of each prompt goes.

    ``{prompt}``, ``{seed}`` and ``{index}`` in the file's name are filled in. Names that would still be equal get -0,
    -1 and so on. A prompt keeps its letters and digits only, so that it names a file in the same folder.

    Raises:
        MistakeError: a name is too long for a file.
    """
    names = [
        path.name.replace("{index}", str(i)).replace("{seed}", str(seed)).replace("{prompt}", _file_name(prompt))
        for i, prompt in enumerate(prompts)
    ]
    if len({name.lower() for name in names}) < len(names):  # some file systems ignore the case
        names = [f"{Path(name).stem}-{i}{path.suffix}" for i, name in enumerate(names)]
    for name in names:
        if len(name.encode()) > LONGEST_NAME:
            raise MistakeError(
                f"--output {path} gives the name {name[:40]}…, of {len(name.encode())} bytes, but a name has at most "
                f"{LONGEST_NAME}: give a shorter one"
            )
    return [path.with_name(f"_{name}" if name.split(".")[0].lower() in RESERVED else name) for name in names]


def _file_name(prompt: str) -> str:
    return re.sub(r"[^\w=-]+", "-", prompt).strip("-")[:LONGEST].strip("-") or "x"


def save(path: Path, frames: list[Image], provenance: dict[str, Any], fps: int) -> None:
    """Write one image, or a video of several frames.

    Raises:
        StoreError: the file can't be written.
    """
    if len(frames) == 1 and path.suffix.lower() in IMAGES:
        save_image(path, frames[0], provenance)
        return
    with written(path) as temporary:
        if path.suffix.lower() in ANIMATIONS:
            _save_animation(temporary, frames, fps)
        else:
            mp4.write(temporary, frames, fps)


def save_image(path: Path, image: Image, provenance: dict[str, Any]) -> None:
    """Write an image; a PNG gets its provenance as text chunks "spectrum" (JSON) and "prompt"."""
    options: dict[str, Any] = {"quality": QUALITY}
    if path.suffix.lower() == ".png":
        options = {"pnginfo": _png_text(provenance)}
    with written(path) as temporary:
        image.convert("RGB").save(temporary, **options)


def _save_animation(path: Path, frames: list[Image], fps: int) -> None:
    first, *others = (frame.convert("RGB") for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=QUALITY)


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
    # Trying is the only sure test: access rights say little about read-only or full file systems.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MistakeError(f"--output: nothing can be written in {folder} ({error.strerror}): choose another") from None
