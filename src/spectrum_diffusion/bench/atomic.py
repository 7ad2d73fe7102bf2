"""Files that are there whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what is written there takes the place of ``path`` at the end, on the disk.

    Raises:
        OSError: the file can't be written; ``path`` is as it was.
    """
    # The suffix stays the last: Pillow and ffmpeg choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a disk that refuses this too has been reported already
        return


def _flush(path: Path) -> None:
    """See that the bytes are on the disk before the name is: a machine that goes down leaves no empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
