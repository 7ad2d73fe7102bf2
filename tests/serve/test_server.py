"""A real server in a process of its own, called by the real `openai` client."""

from __future__ import annotations

import base64
import io
import json
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extras import needs

needs("fastapi", "uvicorn", "prometheus_client", "openai", "schemathesis")

import openai
from PIL import Image
from servers import Server, command, environment, free_port, serving

from spectrum_diffusion import enable, load_default_pipeline

LIMITS = ("--max-images", "2", "--max-steps", "60", "--max-side", "96", "--max-prompt", "60", "--max-body", "4000")
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*LIMITS) as server:
        yield server


def client_of(server: Server, key: str = "unused", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries, timeout=100)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return client_of(server)


def pixels(data: Any) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.b64_json))))


def images(client: openai.OpenAI, **extra: Any) -> Any:
    return client.images.generate(model="tiny-flux", prompt="red apple", extra_body=extra)


def post(server: Server, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{server.url}/v1/images/generations", body, {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_image_is_that_of_the_pipeline_bit_for_bit(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="tiny-flux",
        prompt="red apple",
        n=1,
        size="64x64",
        response_format="b64_json",
        output_format="png",
        extra_body={"seed": 7, "steps": 30, "guidance": 2.0, "speedup": 3},
    )
    pipe = load_default_pipeline()
    with enable(pipe, speedup=3) as handle:
        generator = torch.Generator().manual_seed(7)
        image = pipe("red apple", num_inference_steps=30, guidance_scale=2.0, generator=generator).images[0]
    summary = handle.summary()
    np.testing.assert_array_equal(pixels(answer.data[0]), np.asarray(image))
    done = answer.data[0].model_extra["spectrum"]
    assert done | {"seconds": 0} == {
        "seed": 7,
        "method": "spectrum",
        "steps": 30,
        "nfe": summary.nfe,
        "speedup": summary.speedup,
        "evaluated": summary.evaluated,
        "fallbacks": {},
        "batch": 1,
        "seconds": 0,
    }
    assert answer.size == "64x64"
    assert answer.output_format == "png"


def test_several_images_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    both = client.images.generate(prompt="panda", n=2, extra_body={"seed": 4}).data
    assert [image.model_extra["spectrum"]["seed"] for image in both] == [4, 5]
    for index, image in enumerate(both):
        (alone,) = client.images.generate(prompt="panda", extra_body={"seed": 4 + index}).data
        assert np.abs(pixels(image).astype(int) - pixels(alone)).max() <= 1  # of 255


def test_without_a_seed_images_differ_and_can_be_made_again(client: openai.OpenAI) -> None:
    first, second = images(client).data[0], images(client).data[0]
    seeds = [image.model_extra["spectrum"]["seed"] for image in (first, second)]
    assert seeds[0] != seeds[1]
    np.testing.assert_array_equal(pixels(images(client, seed=seeds[0]).data[0]), pixels(first))


@pytest.mark.parametrize(
    ("quality", "nfe"), [("auto", 14), ("medium", 14), ("standard", 14), ("high", 50), ("hd", 50), ("low", 10)]
)
def test_the_quality_is_a_speedup(client: openai.OpenAI, quality: Any, nfe: int) -> None:
    answer = client.images.generate(prompt="panda", quality=quality)
    assert answer.quality == quality
    assert answer.data[0].model_extra["spectrum"]["nfe"] == nfe


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_is_a_file_of_it(client: openai.OpenAI, kind: Any) -> None:
    answer = client.images.generate(prompt="panda", output_format=kind, size="96x64")
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (image.format.lower(), image.size, answer.size) == (kind, (96, 64), "96x64")


def test_a_stream_tells_each_step_and_ends_with_the_images(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="red apple", n=2, stream=True, extra_body={"seed": 1, "steps": 20})
    events = [event.model_dump() for event in stream]
    for index in (0, 1):
        own = [event for event in events if event["index"] == index]
        assert [event["step"] for event in own[:-1]] == list(range(1, 21))
        assert {event["steps"] for event in own[:-1]} == {20}
        assert own[-1]["type"] == "image_generation.completed"
        assert own[-1]["spectrum"]["seed"] == 1 + index
        assert base64.b64decode(own[-1]["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"prompt": "  "}, 400, "prompt"),
        ({"prompt": "x" * 61}, 400, "prompt"),
        ({"prompt": ["panda"]}, 400, "prompt"),
        ({"n": 3}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"size": "128x64"}, 400, "size"),
        ({"size": "60x64"}, 400, None),
        ({"size": "big"}, 400, "size"),
        ({"steps": 61}, 400, "steps"),
        ({"steps": 2.5}, 400, "steps"),
        ({"speedup": 5.5}, 400, "speedup"),
        ({"speedup": 0.5}, 400, "speedup"),
        ({"speedup": 2, "quality": "low"}, 400, "speedup"),
        ({"seed": -1}, 400, "seed"),
        ({"guidance": 1e9}, 400, "guidance"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"negative_prompt": "blue"}, 400, None),
        ({"colour": "blue"}, 400, "colour"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_a_wrong_request_is_refused_in_the_shape_of_the_api(
    server: Server, change: dict[str, Any], status: int, param: str | None
) -> None:
    answered, body = post(server, json.dumps({"prompt": "panda", **change}).encode())
    assert answered == status
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert len(error["message"]) > 10


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"panda"', b'{"prompt": "\\ud800"}', b"\xff\xfe"])
def test_a_broken_body_is_refused(server: Server, body: bytes) -> None:
    status, answer = post(server, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"prompt": "panda",}', "application/json", "the body is not JSON: .*character"),
        (b"prompt=panda", "application/x-www-form-urlencoded", "the body is of type application/x-www-form-urlencoded"),
        (b'{"prompt": "panda"}', "text/plain", "send JSON, with the header Content-Type: application/json"),
        (b'["panda"]', "application/json", "the body: Input should be"),
    ],
)
def test_a_body_that_is_no_json_is_told_what_to_send(server: Server, body: bytes, kind: str, words: str) -> None:
    status, answer = post(server, body, **{"Content-Type": kind})
    assert (status, answer["error"]["param"]) == (400, None)
    assert re.search(words, answer["error"]["message"])


def test_a_body_above_the_limit_is_refused_unread(server: Server) -> None:
    status, body = post(server, b'{"prompt": "' + b" " * 4000 + b'panda"}')
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_name_that_is_not_local_is_refused_without_a_key(server: Server) -> None:
    status, body = post(server, b'{"prompt": "panda"}', Host="attacker.example")
    assert (status, body["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions"])
def test_a_path_that_is_none_names_those_that_are(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get(path)
    error = json.loads(caught.value.read())["error"]
    assert caught.value.code == 404
    assert f"there is nothing at {path}: POST /v1/images/generations" in error["message"]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-flux"]
    assert client.models.retrieve("tiny-flux").owned_by == "spectrum-diffusion"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def metric(server: Server, name: str) -> float:
    lines = [line for line in server.get("/metrics").splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_metrics_count_what_was_done(server: Server, client: openai.OpenAI) -> None:
    names = ("spectrum_images_total", 'spectrum_requests_total{status="200"}', 'spectrum_requests_total{status="400"}')
    before = [metric(server, name) for name in names]
    evaluated = metric(server, 'spectrum_steps_total{action="evaluated"}')
    client.images.generate(prompt="panda", n=2)
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt=" ")
    assert [metric(server, name) for name in names] == [before[0] + 2, before[1] + 1, before[2] + 1]
    assert metric(server, 'spectrum_steps_total{action="evaluated"}') == evaluated + 28
    assert metric(server, "spectrum_queue_images") == 0


def test_a_key_opens_all_but_health() -> None:
    with serving(key=KEY) as server:
        assert json.loads(server.get("/health"))["status"] == "ok"
        assert [model.id for model in client_of(server, KEY).models.list()] == ["tiny-flux"]
        for key in ("wrong", KEY[:-1], f"{KEY}x", "ключ".encode().decode("latin-1")):
            status, body = post(server, b'{"prompt": "panda"}', Authorization=f"Bearer {key}")
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert post(server, b'{"prompt": "panda"}')[0] == 401
        assert post(server, b'{"prompt": "panda"}', Authorization=f"Basic {KEY}")[0] == 401
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get("/metrics")
        assert images(client_of(server, KEY)).data


def refusal(*arguments: str, key: str | None = None) -> tuple[int, str]:
    run = subprocess.run(
        command(*arguments), env=environment(key), capture_output=True, text=True, timeout=120, check=False
    )
    return run.returncode, run.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_another_address_needs_a_key(host: str) -> None:
    code, message = refusal("--host", host)
    assert code == 2
    assert "can be reached from other machines" in message
    assert "SPECTRUM_API_KEY" in message


def test_a_port_in_use_is_a_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, message = refusal("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "pass another host or port" in message


def test_a_full_queue_answers_429_and_clients_that_retry_lose_nothing() -> None:
    with serving("--max-queue", "1", "--max-images", "1", "--max-batch", "1") as server:
        body = b'{"prompt": "panda", "quality": "high"}'
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: post(server, body), range(6)))
        statuses = sorted(status for status, _ in answers)
        assert set(statuses) == {200, 429}
        refused = next(answer for status, answer in answers if status == 429)
        assert refused["error"]["type"] == "rate_limit_error"
        with ThreadPoolExecutor(4) as pool:
            patient = [pool.submit(images, client_of(server, retries=20), seed=seed) for seed in range(8)]
        assert [future.result().data[0].model_extra["spectrum"]["seed"] for future in patient] == list(range(8))


def test_a_request_past_its_deadline_ends_and_the_next_is_bit_equal() -> None:
    with serving("--timeout", "3", "--max-steps", "1000") as server:
        client = client_of(server)
        before = images(client, seed=3, steps=5)
        begin = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            images(client, seed=3, steps=1000, speedup=1)
        assert caught.value.status_code == 504
        assert time.monotonic() - begin < 20
        with pytest.raises(openai.APIError, match="longer than the server allows"):
            list(client.images.generate(prompt="panda", stream=True, extra_body={"steps": 1000, "speedup": 1}))
        until(lambda: metric(server, 'spectrum_failures_total{reason="abandoned"}') == 2)
        np.testing.assert_array_equal(pixels(images(client, seed=3, steps=5).data[0]), pixels(before.data[0]))


def test_a_client_that_goes_away_ends_its_generation(tmp_path: Path) -> None:
    with serving("--max-steps", "1000", log=tmp_path / "log") as server:
        impatient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            images(impatient, steps=1000, speedup=1)
        until(lambda: metric(server, 'spectrum_failures_total{reason="abandoned"}') == 1)
        assert images(client_of(server), steps=2).data
    assert "exception" not in (tmp_path / "log").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_queued(number: int) -> None:
    with serving("--max-batch", "1") as server:
        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(images, client_of(server), seed=seed) for seed in range(6)]
            until(lambda: metric(server, "spectrum_images_total") >= 1)
            code = server.end(number)
            seeds = [future.result().data[0].model_extra["spectrum"]["seed"] for future in futures]
        assert seeds == list(range(6))
        assert code == (0 if number == signal.SIGTERM else 130)
        with pytest.raises(openai.APIConnectionError):
            images(client_of(server))


def test_what_the_grace_time_cuts_off_is_told_so() -> None:
    with serving("--grace", "0.2", "--max-batch", "1", "--max-steps", "1000") as server:
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(images, client_of(server), steps=1000, speedup=1) for _ in range(3)]
            until(lambda: metric(server, "spectrum_queue_images") == 2)
            assert server.end() == 0
            for future in futures:
                assert future.exception().status_code == 503  # type: ignore[union-attr]


def test_a_second_signal_ends_at_once_and_clients_are_told_so(tmp_path: Path) -> None:
    with serving("--max-batch", "1", "--max-steps", "1000", log=tmp_path / "log") as server:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(images, client_of(server), steps=1000, speedup=1) for _ in range(2)]
            until(lambda: metric(server, "spectrum_queue_images") == 1)
            server.process.send_signal(signal.SIGINT)
            until(lambda: "a second signal" in (tmp_path / "log").read_text(encoding="utf-8"))
            begin = time.monotonic()
            assert server.end(signal.SIGINT) == 130
            assert time.monotonic() - begin < 30
            for future in futures:
                assert future.exception().status_code == 503  # type: ignore[union-attr]
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "2 images to finish within 60 s" in log.replace("\n", " ").replace("  ", "")
    assert "Traceback" not in log


def test_a_server_that_is_killed_is_replaced_and_clients_that_retry_lose_nothing() -> None:
    port = free_port()
    with serving(port=port) as first, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(images, client_of(first, retries=40), seed=seed) for seed in range(12)]
        until(lambda: metric(first, "spectrum_images_total") >= 1)
        first.end(signal.SIGKILL)
        with serving(port=port):
            seeds = [future.result().data[0].model_extra["spectrum"]["seed"] for future in futures]
    assert seeds == list(range(12))


def test_many_clients_lose_nothing(server: Server) -> None:
    from benchmarks.load import measure

    load = measure(server.url, clients=8, seconds=5.0)
    assert load.lost == 0
    assert load.answered == len(load.latencies) >= 8
    assert sorted(load.seeds) == sorted(load.sent)
    assert metric(server, "spectrum_queue_images") == 0


def test_the_openapi_document_holds_under_fuzzing(tmp_path: Path) -> None:
    with serving(*LIMITS, "--max-batch", "1") as server:
        # Valid data is refused where fields contradict each other, which a schema cannot say.
        fuzz = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--seed", "1"),
            *("--max-examples", "15", "--request-timeout", "60", "--no-color"),
            *("--exclude-checks", "positive_data_acceptance"),
        ]
        run = subprocess.run(fuzz, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        assert run.returncode == 0, run.stdout[-4000:]
        assert "5 selected / 5 total" in run.stdout
        assert metric(server, 'spectrum_requests_total{status="200"}') > 0
        assert server.process.poll() is None


def test_the_example_saves_its_images(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRUM_URL", f"{server.url}/v1")
    example = runpy.run_path(str(request.config.rootpath / "examples" / "openai_client.py"))
    assert example["main"]() == {"high": 50, "low": 10, "streamed": 16}
    saved = {path.name for path in (tmp_path / "out" / "openai_client").iterdir()}
    assert saved == {"high.png", "low.png", "streamed.png"}
