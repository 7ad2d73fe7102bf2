"""`spectrum serve --ray local`: two replicas behind one queue, one of which dies."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from extras import needs
from rays import RAY, children

needs("ray.data", "pyarrow", "fastapi", "uvicorn", "prometheus_client", "openai")

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

import openai
from servers import Server, serving

QUICK = {"steps": 12}
LONG = {"steps": 100, "speedup": 1}
PATIENCE = 300.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*RAY, "--max-batch", "1", "--timeout", "200") as server:
        yield server


def client_of(server: Server, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=retries, timeout=PATIENCE)


def image(server: Server, seed: int, **extra: Any) -> Any:
    (data,) = client_of(server).images.generate(prompt="red apple", extra_body={"seed": seed, **QUICK, **extra}).data
    return data


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ready(server: Server) -> int:
    try:
        return int(json.loads(server.get("/health"))["replicas"])
    except urllib.error.HTTPError:
        return 0


def metric(server: Server, name: str) -> float:
    return next(float(line.split()[-1]) for line in server.get("/metrics").splitlines() if line.startswith(f"{name} "))


def busy(server: Server) -> list[int]:
    """The processes of replicas that generate."""
    return [pid for pid, line in children(server.process.pid).items() if line.startswith("ray::_Actor.generate")]


def test_two_replicas_answer_as_one_pipeline_does(server: Server) -> None:
    assert ready(server) == 2
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda seed: image(server, seed), range(4)))
    with serving("--max-batch", "1") as single:
        for seed, data in enumerate(images):
            assert data.b64_json == image(single, seed).b64_json
    assert client_of(server).models.list().data[0].id == "tiny-flux"
    with pytest.raises(openai.BadRequestError, match="multiples of"):
        client_of(server).images.generate(prompt="panda", size="60x64")  # type: ignore[call-overload]


def test_both_replicas_work_at_a_time(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(image, server, seed, **LONG) for seed in range(2)]
        until(lambda: len(busy(server)) == 2)
        for future in futures:
            assert future.result().model_extra["spectrum"]["nfe"] == 100


def test_a_stream_tells_each_step(server: Server) -> None:
    stream = client_of(server).images.generate(prompt="red apple", stream=True, extra_body={"seed": 1, "steps": 20})
    *steps, done = [event.model_dump() for event in stream]
    assert [event["step"] for event in steps] == list(range(1, 21))
    assert done["type"] == "image_generation.completed"


def test_a_generation_that_nobody_waits_for_ends_and_frees_its_replica(server: Server) -> None:
    impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=2)
    for _ in range(2):
        with pytest.raises(openai.APITimeoutError):
            impatient.images.generate(prompt="red apple", extra_body=LONG)
    until(lambda: not busy(server))
    assert image(server, 0).b64_json


def test_a_replica_that_dies_loses_no_request_and_is_replaced(server: Server) -> None:
    images = metric(server, "spectrum_images_total")
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(image, server, seed, **LONG) for seed in range(3)]
        until(lambda: len(busy(server)) == 2)
        os.kill(busy(server)[0], signal.SIGKILL)
        until(lambda: ready(server) == 1)
        seeds = [future.result().model_extra["spectrum"]["seed"] for future in futures]
    assert seeds == [0, 1, 2]
    assert metric(server, "spectrum_images_total") == images + 3
    assert metric(server, "spectrum_replicas_lost_total") == 1
    until(lambda: ready(server) == 2)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda seed: image(server, seed).b64_json, range(2)))


def test_an_image_that_ends_two_replicas_is_refused_with_the_reason(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(image, server, 0, **LONG)
        killed: set[int] = set()
        while len(killed) < 2:
            until(lambda: bool(set(busy(server)) - killed))
            (fresh,) = set(busy(server)) - killed
            os.kill(fresh, signal.SIGKILL)
            killed.add(fresh)
        error = future.exception()
    assert isinstance(error, openai.InternalServerError)
    assert error.code == "replica_lost"
    assert "2 replicas died" in str(error)
    assert image(server, 1).b64_json


def test_a_signal_finishes_what_is_queued_and_leaves_no_process() -> None:
    with serving(*RAY, "--max-batch", "1", "--grace", "200") as server:
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(image, server, seed, **LONG) for seed in range(4)]
            until(lambda: len(busy(server)) == 2)
            below = children(server.process.pid)
            assert server.end() == 0
            assert [future.result().model_extra["spectrum"]["seed"] for future in futures] == list(range(4))
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid, line in below.items() if "ray::_Actor" in line))
