"""Why a request got no image: an HTTP status, and an error in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        code: a short name of the reason; metrics count by it.
        param: the field of the request that is wrong, if it is one.
        headers: of the answer.
    """

    status, code = 400, "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str = "") -> None:
        super().__init__(message)
        self.param, self.code = param, code or type(self).code
        self.headers: dict[str, str] = {}

    def body(self) -> dict[str, Any]:
        """The error as JSON-ready values."""
        return error_body(self.status, str(self), self.code, self.param)


class QueueFullError(RequestError):
    """The queue cannot take the request now."""

    status, code = 429, "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after)}


class ShuttingDownError(RequestError):
    """The server ends before the request is done."""

    status, code = 503, "shutting_down"


class NotReadyError(RequestError):
    """Nothing can generate now."""

    status, code = 503, "not_ready"


class DeadlineError(RequestError):
    """The request took longer than allowed."""

    status, code = 504, "deadline_exceeded"


class GenerationError(RequestError):
    """The pipeline failed on a valid request."""

    status, code = 500, "generation_failed"


class AbandonedError(RequestError):
    """The client went away, so that nobody reads the answer."""

    status, code = 499, "client_closed_request"


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """An error in the shape that OpenAI's clients read."""
    kinds: Mapping[int, str] = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
