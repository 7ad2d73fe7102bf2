"""Runs the application: the address, the signals, and the end in grace."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..errors import InvalidOptionError
from .app import build_app
from .engine import AnyEngine
from .limits import Limits
from .worker import Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY_VARIABLE = "SPECTRUM_API_KEY"
LAST_ANSWERS = 5.0
"""Seconds for the answers to requests that the end of the grace time cut off."""


def api_key() -> str | None:
    """The key of the environment; None if it is not set or empty."""
    return os.environ.get(KEY_VARIABLE, "").strip() or None


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A socket on the address, before a model is loaded.

    Raises:
        InvalidOptionError: other machines could reach the address without a key, or it cannot be used.
    """
    if key is None and not _is_loopback(host):
        raise InvalidOptionError(
            f"the host {host!r} can be reached from other machines, and there is no API key: set the environment "
            f"variable {KEY_VARIABLE}, or leave the host out to serve this machine only"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidOptionError(f"the server cannot use {host}:{port} ({reason}): pass another host or port") from None
    return bound


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may mean any address
        return False


class _Server(uvicorn.Server):
    """A server that tells the worker of SIGTERM and SIGINT."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float) -> None:
        super().__init__(config)
        self._worker, self._grace = worker, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.close(self._grace)
        super().handle_exit(sig, frame)


def serve(
    engines: Sequence[AnyEngine],
    limits: Limits,
    names: Sequence[str],
    key: str | None,
    bound: socket.socket,
    grace: float,
) -> None:
    """Answer requests until SIGTERM or SIGINT. What is queued then is finished within the grace time.

    Args:
        engines: what generates, each with a pipeline of its own.
        names: of the model, as clients may write them.
        bound: what :func:`bind` gave.
        grace: seconds.
    """
    worker = Worker(engines, limits)
    app: FastAPI = build_app(worker, limits, names, key)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(grace + LAST_ANSWERS),
    )
    # uvicorn raises the signal again at its end: a SIGTERM that was obeyed is a success.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _Server(config, worker, grace).run(sockets=[bound])
