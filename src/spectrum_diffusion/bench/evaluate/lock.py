"""Allows one evaluation at a time in a folder.

The lock of the operating system disappears with its process, so a killed process leaves nothing to clean up. A network
file system may not show the locks of other machines. The holder therefore also writes its name into a file and touches
the file every few seconds.
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

from filelock import FileLock, Timeout

from ...atomic import StoreError, remove
from ...errors import ConflictError
from .files import read_json

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"
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
    holder = folder / HOLDER_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0).acquire()
    except Timeout:
        raise _conflict(folder) from None
    except OSError as error:
        raise StoreError(f"{folder} can't be written ({error.strerror}): choose another folder") from error
    with lock:
        if _is_alive_elsewhere(holder):
            raise _conflict(folder)
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(holder, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            remove(holder)


def _conflict(folder: Path) -> ConflictError:
    holder = read_json(folder / HOLDER_FILE) or {}
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return ConflictError(
        f"{folder} is in use by another evaluation ({who}): wait until it is done, or choose another folder"
    )


def _is_alive_elsewhere(holder: Path) -> bool:
    """Whether a process of another machine has the folder, whose lock this machine may not see."""
    named = read_json(holder)
    if named is None or named.get("host") in (None, socket.gethostname()):
        return False
    return time.time() - holder.stat().st_mtime <= DEAD


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return
