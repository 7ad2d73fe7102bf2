"""Allows one evaluation at a time in a folder.

The operating system's lock (``flock``) disappears with its process, so a killed process leaves nothing to clean up. A
network file system may not show the locks of other machines. The holder therefore also writes its name into the file
and touches the file every few seconds.
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
from ..atomic import StoreError

try:
    import fcntl
except ImportError:  # Windows has only the heartbeat
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
BEAT = 5.0
"""Seconds between two heartbeats."""
DEAD = 60.0
"""A holder on another machine without a heartbeat for so many seconds is gone."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder, which is created if missing.

    Raises:
        ConflictError: another evaluation uses it.
        StoreError: the folder can't be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder} can't be written ({error.strerror}): choose another folder") from error
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
            file.truncate(0)  # the file stays: after its removal two processes could lock two files of the same name


def _take(file: IO[str], folder: Path) -> None:
    holder = _read_holder(file)
    if not _is_free(file, holder):
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        raise ConflictError(
            f"{folder} is in use by another evaluation ({who}): wait until it is done, or choose another folder"
        )
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()


def _is_free(file: IO[str], holder: dict[str, Any]) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if holder.get("host") in (None, socket.gethostname()):
            return True  # on this machine, flock alone decides
    return not holder or time.time() - os.fstat(file.fileno()).st_mtime > DEAD


def _read_holder(file: IO[str]) -> dict[str, Any]:
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
