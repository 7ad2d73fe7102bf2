"""What every request passes first: the key, the name of the host, and the size of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .failures import error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key."""
BODY_SECONDS = 30.0
"""Time in which a client must send its request."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names under which a server without a key answers: a web page elsewhere cannot reach it by a name of its own."""


class Gate:
    """Answers requests that no route should see, and reads the body of the others.

    Args:
        app: answers the rest.
        key: what clients send as ``Authorization: Bearer KEY``; None lets every local client in.
        limit: bytes of a body.
    """

    def __init__(self, app: App, key: str | None, limit: int) -> None:
        self._app, self._limit = app, limit
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"host")}
        if self._key is None and not _is_loopback(headers.get(b"host", b"")):
            message = "this server has no key, so it answers under the name localhost only: use http://localhost"
            await _answer(send, 403, message, "wrong_host")
        elif scope["path"] not in OPEN and not self._is_key(headers.get(b"authorization", b"")):
            message = "the API key is missing or wrong: send the header Authorization: Bearer KEY"
            await _answer(send, 401, message, "invalid_api_key", [(b"www-authenticate", b"Bearer")])
        else:
            await self._read(scope, receive, send)

    def _is_key(self, authorization: bytes) -> bool:
        if self._key is None:
            return True
        scheme, _, given = authorization.partition(b" ")
        return hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"

    async def _read(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the body before any route runs, so that a slow or an endless one costs no more than its limit."""
        try:
            body = await asyncio.wait_for(self._body(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            await _answer(send, 408, f"the body did not arrive within {BODY_SECONDS:g} s: send it again", "timeout")
            return
        if body is None:
            message = f"the body is larger than {self._limit} bytes, which this server does not allow: send less"
            await _answer(send, 413, message, "body_too_large", [(b"connection", b"close")])
            return
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read_again() -> Message:
            return parts.pop() if parts else await receive()

        await self._app(scope, read_again, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The body; None if it is too large."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return body
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                return None
        return body


def _is_loopback(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name in LOOPBACK


async def _answer(
    send: Send, status: int, message: str, code: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps(error_body(status, message, code)).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
