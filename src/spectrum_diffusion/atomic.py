"""Atomic files: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import SpectrumError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.\w+)?")
"""Names of unfinished files."""


class StoreError(SpectrumError):
    """A file can't be written, mostly because the disk is full or read-only."""


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which replaces ``path`` at the end. Missing folders are created.

    Raises:
        StoreError: the file can't be written; ``path`` is unchanged.
    """
    # The suffix stays last: Pillow and ffmpeg choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise StoreError(
            f"{path} can't be written ({error.strerror or error}): {advice} and run the same command again"
        ) from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file if it exists and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a disk that refuses this too has been reported already
        return


def _flush(path: Path) -> None:
    """Put the bytes on the disk before the name, so that a crash of the machine leaves no empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
