"""The routes: images, models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from .._version import __version__
from .engine import Generated
from .failures import AbandonedError, DeadlineError, NotReadyError, RequestError, ShuttingDownError, error_body
from .gate import Gate
from .limits import Limits
from .schema import (
    ErrorAnswer,
    Health,
    ImageAnswer,
    ImageRequest,
    Model,
    Models,
    common,
    image_data,
    request_model,
)
from .worker import Task, Worker

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
DISCONNECT_SECONDS = 0.5
"""How often a request that waits looks whether its client is still there."""
EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["event", "data"],
}
ROUTES = "POST /v1/images/generations makes images, and GET /openapi.json describes all routes"
STREAM = {"text/event-stream": {"schema": EVENT}}
REASONS = {
    400: "The request is wrong, or this pipeline cannot do it.",
    401: "The key is missing or wrong.",
    403: "A server without a key was called by a name that is not local.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue is full; the header Retry-After says when to try again.",
    500: "The generation failed.",
    503: "The server is shutting down, or no replica is ready.",
    504: "The request took longer than the server allows.",
}


def build_app(worker: Worker, limits: Limits, names: Sequence[str], key: str | None) -> FastAPI:
    """The server's application.

    Args:
        worker: generates the images; it is joined when the application ends.
        names: of the model, as clients may write them.
        key: that clients must send; None lets every local client in.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.join)

    app = FastAPI(
        title="spectrum-diffusion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )  # its pages load scripts from elsewhere
    app.add_middleware(Gate, key=key, limit=limits.body)
    app.state.worker = worker
    _answer_errors(app)
    _add_images(app, worker, limits, names)
    _add_facts(app, worker, names)
    _document(app)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer, "description": REASONS[status]} for status in statuses}


def _add_images(app: FastAPI, worker: Worker, limits: Limits, names: Sequence[str]) -> None:
    body_model = request_model(limits)

    async def generate(http: Request, request: Any) -> Any:
        """Generate images from a prompt."""
        if request.model is not None and request.model not in names:
            raise _no_model(request.model, names)
        tasks = request.tasks(request.settings(worker.abilities, limits), time.monotonic() + limits.seconds)
        events = _watch(tasks) if request.stream else None
        worker.submit(tasks)
        if events is not None:
            return StreamingResponse(_stream(worker, request, tasks, events), media_type="text/event-stream")
        images = await _wait(http, worker, tasks, limits.seconds)
        # In a thread, since large images take seconds to encode, in which the server would answer nobody.
        data = await asyncio.to_thread(lambda: list(map(image_data, repeat(request), tasks, images)))
        _count(worker, 200)
        return JSONResponse({**common(request, images[0]), "data": [image.model_dump() for image in data]})

    generate.__annotations__["request"] = body_model
    answers = {
        200: {"model": ImageAnswer, "description": "The images; with stream, events.", "content": STREAM},
        **_errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 504),
    }
    app.post("/v1/images/generations", responses=answers)(generate)


def _add_facts(app: FastAPI, worker: Worker, names: Sequence[str]) -> None:
    begun = int(time.time())

    @app.get("/v1/models", responses=_errors(401, 403))
    async def models() -> Models:
        """The model that is served."""
        return Models(data=[Model(id=name, created=begun) for name in names])

    @app.get("/v1/models/{name:path}", responses=_errors(401, 403, 404))
    async def model(name: str) -> Model:
        """One model."""
        if name not in names:
            raise _no_model(name, names)
        return Model(id=name, created=begun)

    @app.get("/health", responses=_errors(403, 503))
    async def health() -> Health:
        """Whether requests are taken."""
        if worker.is_closing:
            raise ShuttingDownError("the server is shutting down: send requests to another one")
        if not worker.ready:
            raise NotReadyError("no replica is ready: they died, and others are being started")
        return Health(waiting=worker.waiting, replicas=worker.ready)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **_errors(401, 403)})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(worker.metrics.text(), media_type=PROMETHEUS)


def _no_model(name: str, names: Sequence[str]) -> RequestError:
    error = RequestError(f"the model {name!r} is not served here: pass {' or '.join(names)}", param="model")
    error.status, error.code = 404, "model_not_found"
    return error


async def _wait(http: Request, worker: Worker, tasks: Sequence[Task], seconds: float) -> list[Generated]:
    """The images of the tasks. They are given up when the client goes away, or when the first of them fails.

    Raises:
        RequestError: there is no image.
    """
    futures = [asyncio.wrap_future(task.result) for task in tasks]
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, left = await asyncio.wait(futures, timeout=DISCONNECT_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what ended it
            if not left:
                return [future.result() for future in futures]
            if await http.is_disconnected():
                raise AbandonedError("the client went away")
        raise DeadlineError(f"the request took longer than {seconds:g} s: ask for fewer steps or images")
    finally:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # else asyncio complains of those that nobody looked at


Event = dict[str, Any]


def _watch(tasks: Sequence[Task]) -> asyncio.Queue[Event]:
    """A queue that gets the steps of the tasks from the worker's thread."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(index: int, done: int, total: int) -> None:
        event = {"type": "image_generation.progress", "index": index, "step": done, "steps": total}
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, event)

    for index, task in enumerate(tasks):
        task.on_progress = lambda done, total, index=index: tell(index, done, total)  # type: ignore[misc]
        task.result.add_done_callback(lambda _, index=index: tell(index, -1, -1))  # type: ignore[misc]
    return events


async def _stream(
    worker: Worker, request: ImageRequest, tasks: Sequence[Task], events: asyncio.Queue[Event]
) -> AsyncIterator[str]:
    """Server-sent events: the steps done, each image when it is done, or the error that ends the stream."""
    left = len(tasks)
    status = AbandonedError.status
    try:
        while left:
            try:
                event = await asyncio.wait_for(events.get(), max(0.0, tasks[0].deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise DeadlineError("the request took longer than the server allows: ask for fewer steps") from None
            if event["step"] >= 0:
                yield _sse(event)
                continue
            left -= 1
            generated = tasks[event["index"]].result.result()
            data = await asyncio.to_thread(image_data, request, tasks[event["index"]], generated)
            done = {"type": "image_generation.completed", "index": event["index"]}
            yield _sse({**done, **common(request, generated), **data.model_dump()})
        status = 200
    except RequestError as error:
        status = error.status
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        _count(worker, status)
        for task in tasks:
            task.result.cancel()


def _sse(event: Event) -> str:
    event = {("created_at" if name == "created" else name): value for name, value in event.items()}
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _count(worker: Worker, status: int) -> None:
    worker.metrics.requests.labels(str(status)).inc()


def _answer_errors(app: FastAPI) -> None:
    """Answer every error in the shape of OpenAI's API."""

    @app.exception_handler(RequestError)
    async def refused(http: Request, error: RequestError) -> JSONResponse:
        if http.url.path.startswith("/v1/images"):
            _count(http.app.state.worker, error.status)
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(http, _explained(error.errors()[0], http.headers.get("content-type", "")))

    @app.exception_handler(HTTPException)
    async def unknown(http: Request, error: HTTPException) -> JSONResponse:
        message, code = str(error.detail), str(error.detail).lower().replace(" ", "_")
        if error.status_code == 404:
            message = f"there is nothing at {http.url.path}: {ROUTES}"
        body = error_body(error.status_code, message, code)
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(http: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, "the server failed: see its log", "internal_error"), 500)


def _explained(problem: Mapping[str, Any], kind: str) -> RequestError:
    """The answer to a body that does not fit the schema.

    Args:
        problem: Pydantic's first error.
        kind: the header Content-Type.
    """
    if problem["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {problem['ctx']['error']} (character {problem['loc'][-1]})")
    param = ".".join(str(part) for part in problem["loc"][1:]) or None
    if param is None and not kind.startswith("application/json"):
        given = f"of type {kind}" if kind else "without a type"
        return RequestError(f"the body is {given}: send JSON, with the header Content-Type: application/json")
    return RequestError(f"{param or 'the body'}: {problem['msg']}", param=param)


def _document(app: FastAPI) -> None:
    """Leave the answers out of the OpenAPI document that FastAPI describes and this server never gives."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
