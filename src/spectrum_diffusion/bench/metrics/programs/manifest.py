"""The list of files in a folder: a line of JSON for each image or video."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....errors import InvalidOptionError
from ....untrusted import parse_json

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """A file, relative to its manifest, with its prompt and the prompt's category (VBench: dimensions)."""

    file: str
    prompt: str
    category: str = ""


def write_manifest(folder: Path, entries: Iterable[Entry]) -> Path:
    """Write the list into the folder, and return its path."""
    listed = list(entries)
    _check(folder, listed)
    path = folder / MANIFEST
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in listed), encoding="utf-8")
    return path


def read_manifest(folder: Path) -> list[Entry]:
    """The list of a folder.

    Raises:
        InvalidOptionError: the manifest is missing or can't be read, or one of its files is missing.
    """
    path = folder / MANIFEST
    try:
        entries = [_entry(parse_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InvalidOptionError(f"{folder} has no {MANIFEST}: write one with write_manifest") from None
    except (OSError, ValueError, TypeError) as error:
        raise InvalidOptionError(
            f"{path} must list a file and its prompt on each line, but it does not ({error}): write it with "
            "write_manifest"
        ) from error
    _check(folder, entries)
    return entries


def _entry(values: Any) -> Entry:
    entry = Entry(**values)
    if not all(isinstance(value, str) for value in vars(entry).values()):
        raise ValueError(f"{values!s:.80} has a value that is not text")
    return entry


def _check(folder: Path, entries: list[Entry]) -> None:
    names = [entry.file for entry in entries]
    if not entries:
        raise InvalidOptionError(f"there is nothing to list in {folder}: give one file or more")
    if len(set(names)) < len(names):
        raise InvalidOptionError(
            f"a file of {folder} is listed twice: {sorted({n for n in names if names.count(n) > 1})}"
        )
    if missing := [name for name in names if "\0" in name or not (folder / name).is_file()]:
        raise InvalidOptionError(f"{folder} has no file {', '.join(missing[:5])}: write the files first")
