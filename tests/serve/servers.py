"""A real `spectrum serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

SRC = str(Path(__file__).parents[2] / "src")
STARTED = 300.0


class Server:
    """A server that answers."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return str(answer.read().decode())

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=240)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "spectrum_diffusion", "serve", *arguments]


def environment(key: str | None = None) -> dict[str, str]:
    own = {"PYTHONPATH": SRC, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **own, "SPECTRUM_API_KEY": key or ""}


@contextmanager
def serving(
    *arguments: str, key: str | None = None, port: int | None = None, log: Path | None = None
) -> Iterator[Server]:
    """A server with these options; it is killed at the end if it still runs.

    Args:
        log: where its stderr goes, if not to that of the tests.
    """
    port = port or free_port()
    with log.open("w") if log else nullcontext() as stderr:
        process = subprocess.Popen(
            command("--port", str(port), *arguments), env=environment(key), text=True, stderr=stderr
        )
    server = Server(process, port)
    try:
        deadline = time.monotonic() + STARTED
        while time.monotonic() < deadline and process.poll() is None:
            try:
                server.get("/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        assert process.poll() is None, "the server ended at its start"
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
