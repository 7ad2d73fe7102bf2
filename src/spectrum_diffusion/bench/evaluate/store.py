"""The folder of an evaluation. Finished work is kept under its key, and read only if it is complete.

units/METHOD/PROMPT-sSEED-KEY.png       lossless frames (.zip of PNGs for a video), written first
units/METHOD/PROMPT-sSEED-KEY.json      the record, which makes the unit finished
units/METHOD/PROMPT-sSEED-KEY.metrics   metrics, each with its own key
flops/METHOD/…json                      operations, counted once per setting
programs/METRIC/METHOD-KEY/             input, output and log of another program; score.json for a whole row
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...atomic import written
from .. import mp4
from . import files
from .sampling import Sample
from .units import Unit

if TYPE_CHECKING:
    from PIL.Image import Image


class Store:
    """Reads and writes the units of a folder. The process must hold its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """The record of a finished unit; None if it or one of its files is missing, truncated or of another key."""
        record = files.read_json(self._path(unit, ".json"))
        if record is None or record.get("key") != unit.key:
            return None
        kept = record.get("files", {})  # a count of operations has none
        if not isinstance(kept, dict):
            return None
        return record if all(self._is_intact(name, checksum) for name, checksum in kept.items()) else None

    def save(self, unit: Unit, sample: Sample, measured: dict[str, Any]) -> None:
        """Write a sample: its files, then its record."""
        suffix, data = files.encode(sample.frames)
        contents = {self._path(unit, suffix): data}
        if sample.latents is not None and unit.row is None:
            contents[self._path(unit, ".npy")] = _npy(sample.latents)
        for path, content in contents.items():
            files.write_bytes(path, content)
        if suffix == ".zip":
            self._save_video(unit, sample.frames)
        record = {
            "key": unit.key,
            "method": unit.method,
            "prompt": unit.case.prompt.text,
            "seed": unit.case.seed,
            "frames": len(sample.frames),
            "files": {path.relative_to(self.folder).as_posix(): files.digest(data) for path, data in contents.items()},
            **measured,
        }
        self.save_record(unit, record)

    def save_record(self, unit: Unit, record: dict[str, Any]) -> None:
        files.write_json(self._path(unit, ".json"), {**record, "key": unit.key}, indent=None)

    def read_frames(self, name: str) -> list[Image]:
        """The frames in a file of the folder."""
        return files.decode((self.folder / name).read_bytes(), Path(name).suffix)

    def playable(self, unit: Unit, record: dict[str, Any], suffix: str) -> Path | None:
        """The file of a unit's image (.png) or video (.mp4) for other programs, or None."""
        if suffix == ".png":
            name = self._file(record, suffix)
            return self.folder / name if name else None
        path = self._path(unit, suffix)
        if not path.is_file() and self._file(record, ".zip"):  # generated when no package could write it
            self._save_video(unit, self.read_frames(self.frames_file(record)))
        return path if path.is_file() else None

    def frames_file(self, record: dict[str, Any]) -> str:
        """The path of a unit's frames within the folder."""
        return self._file(record, ".png", ".zip")

    def latents(self, record: dict[str, Any]) -> np.ndarray[Any, Any] | None:
        """The latents of a reference after each step, (T, …)."""
        name = self._file(record, ".npy")
        return np.load(self.folder / name) if name else None

    def metrics(self, unit: Unit) -> dict[str, Any]:
        """Metrics of a unit by name, including outdated ones."""
        metrics = files.read_json(self._path(unit, ".metrics")) or {}
        return {name: value for name, value in metrics.items() if isinstance(value, dict)}

    def save_metrics(self, unit: Unit, metrics: dict[str, Any]) -> None:
        files.write_json(self._path(unit, ".metrics"), metrics, indent=None)

    def _save_video(self, unit: Unit, frames: list[Image]) -> None:
        """Write an mp4 for viewing beside the lossless frames, if a package can."""
        if mp4.can_write():
            with written(self._path(unit, ".mp4")) as temporary:
                mp4.write(temporary, frames)

    def _path(self, unit: Unit, suffix: str) -> Path:
        # with_suffix would cut the name at a dot of the prompt.
        return self.folder / f"{unit.name}{suffix}"

    def _file(self, record: dict[str, Any], *suffixes: str) -> str:
        return next((name for name in record["files"] if name.endswith(suffixes)), "")

    def _is_intact(self, name: str, checksum: str) -> bool:
        try:
            path = (self.folder / name).resolve()
            return path.is_relative_to(self.folder.resolve()) and files.digest(path.read_bytes()) == checksum
        except (OSError, ValueError):  # missing, or a name that no file can have
            return False


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
