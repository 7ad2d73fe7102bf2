"""Latency of the server under load: clients that send one request after the other for a bounded time.

    python -m benchmarks.load --write docs/scaling.md

starts ``spectrum serve`` with the model that ships on this machine, and needs the extra ``serve``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .marks import replace_block

CLIENTS = (1, 4, 16)
SECONDS = 30.0
STARTED = 120.0
PATIENCE = 300.0
"""Seconds within which a request that was sent must be answered, retries included."""
STEPS = 50


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        latencies: seconds from the first try of a request to its image.
        retries: answers 429, after which a client waited and tried again.
        lost: requests without an image.
        sent, seeds: the seed of each request, and of each image.
    """

    clients: int
    latencies: list[float] = field(default_factory=list)
    retries: int = 0
    lost: int = 0
    sent: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        return len(self.seeds)

    def row(self) -> str:
        """The line of the table."""
        p50, p90, p99 = np.percentile(self.latencies, [50, 90, 99])
        counts = f"| {self.clients} | {len(self.sent)} | {self.answered} | {self.lost} | {self.retries} |"
        return f"{counts} {self.answered / self.seconds:.2f} | {p50:.2f} | {p90:.2f} | {p99:.2f} |"


def measure(url: str, clients: int, seconds: float) -> Load:
    """Let clients send requests until the time is over, and wait for every answer."""
    load, lock = Load(clients), threading.Lock()
    begin = time.monotonic()

    def run(client: int) -> None:
        request = 0
        while time.monotonic() - begin < seconds:
            seed = client * 10_000 + request
            request += 1
            with lock:
                load.sent.append(seed)
            _ask(url, seed, load, lock)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - begin
    return load


def _ask(url: str, seed: int, load: Load, lock: threading.Lock) -> None:
    """Send one request until it is answered with an image."""
    body = json.dumps({"prompt": "red apple", "seed": seed, "steps": STEPS}).encode()
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE:
        request = urllib.request.Request(f"{url}/v1/images/generations", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                (image,) = json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            if error.code != 429:
                break
            with lock:
                load.retries += 1
            time.sleep(float(error.headers["Retry-After"]))
            continue
        except OSError:
            break
        with lock:
            load.latencies.append(time.monotonic() - begin)
            load.seeds.append(image["spectrum"]["seed"])
        return
    with lock:
        load.lost += 1


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a server of the model that ships."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "spectrum_diffusion", "serve", "--port", str(port), *arguments],
        env={**os.environ, "SPECTRUM_API_KEY": ""},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTED
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def table(loads: Sequence[Load], what: str) -> str:
    """The table and what it was measured on."""
    titles = ("clients", "requests", "images", "lost", "429", "images/s", "p50 s", "p90 s", "p99 s")
    head = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs shared with other work"
    work = f"tiny-flux, {STEPS} steps, 14 evaluated, {what}, each row {SECONDS:.0f} s"
    return "\n".join([head, *(load.row() for load in loads), "", f"{machine}, {work}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    page = parser.parse_args().write
    for batch, mark in ((4, "load"), (1, "load-single")):
        with served("--max-batch", str(batch)) as url:
            measure(url, 2, 2.0)  # the first calls compile and allocate
            loads = [measure(url, clients, SECONDS) for clients in CLIENTS]
        text = table(loads, f"up to {batch} image{'s' * (batch > 1)} in a call")
        print(text)
        if page:
            replace_block(page, text, mark)


if __name__ == "__main__":
    main()
