"""One evaluation at a time in a folder.

The lock is the system's (``flock``), so that it goes with the process, however that ends, and nothing is left to clear
up. Another machine's lock may not be seen through a network's file system, so the holder also says who it is in the
file, and touches it every few seconds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...errors import ConflictError
from .files import StoreError

try:
    import fcntl
except ImportError:  # Windows: the signs of life alone
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
BEAT = 5.0
"""Seconds between two signs of life."""
DEAD = 60.0
"""A holder on another machine that gave no sign for so long is gone."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be.

    Raises:
        ConflictError: another evaluation holds it.
        StoreError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"nothing can be written in {folder} ({error.strerror}): choose another folder") from error
    with file:
        _take(file, folder)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(folder / LOCK_FILE, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            file.truncate(0)  # the file stays: removing it would let two hold locks on two files of one name


def _take(file: IO[str], folder: Path) -> None:
    holder = _read(file)
    if not _free(file, holder):
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        raise ConflictError(
            f"{folder} is in use by another evaluation ({who}): wait until it is done, or choose another folder"
        )
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()


def _free(file: IO[str], holder: dict[str, Any]) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if holder.get("host") in (None, socket.gethostname()):
            return True  # the system knows: whoever wrote this is gone
    return not holder or time.time() - os.fstat(file.fileno()).st_mtime > DEAD


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        value = json.loads(file.read())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return
