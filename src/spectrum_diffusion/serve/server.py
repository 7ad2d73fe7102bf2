"""Runs the application: the address, the signals, and the end in grace."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ..core.words import counted_name
from ..errors import InvalidOptionError
from .address import bind as bind_address
from .address import is_loopback
from .app import build_app
from .engine import AnyEngine
from .limits import Limits
from .worker import Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

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
    if key is None and not is_loopback(host):
        raise InvalidOptionError(
            f"the host {host!r} can be reached from other machines, and there is no API key: set the environment "
            f"variable {KEY_VARIABLE}, or leave the host out to serve this machine only"
        )
    return bind_address(host, port)


class _Server(uvicorn.Server):
    """A server that finishes what is queued after SIGTERM or SIGINT, and answers it with an error after another one."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float) -> None:
        super().__init__(config)
        self._worker, self._grace = worker, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # asked again; uvicorn would drop the connections
            self._worker.close(0)
        else:
            self._worker.close(self._grace)
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if count := self._worker.unfinished:
            log.warning(
                "%s to finish within %g s, then the server ends; a second signal, such as Ctrl-C, ends it now",
                counted_name(count, "image"),
                self._grace,
            )
        await super().shutdown(sockets)


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
        bound: listens where :func:`bind` bound it.
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
