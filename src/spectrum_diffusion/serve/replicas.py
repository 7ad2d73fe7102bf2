"""Engines in actors of a Ray cluster. The queue, the limits and the HTTP routes stay in the process of the server."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from ..cluster import Pool, remote_reason, stand_in
from .abilities import Abilities, Settings
from .engine import Engine, Generated, Item, LostError

log = logging.getLogger(__name__)

START = "mend this, and start the server again"
PATIENCE = 5.0
"""Seconds between two looks whether a replica has started, and before another try if it could not."""

Step = tuple[int, int]
"""Steps done, and their number."""


class Replica:
    """An engine in an actor. If the actor dies, :meth:`restore` puts another one in its place.

    Args:
        pool: the cluster.
        load: makes the engine in the actor; it must pickle.
    """

    abilities: Abilities

    def __init__(self, pool: Pool, load: Callable[[], Engine]) -> None:
        self._pool, self._load = pool, load
        self._actor = self._start()

    def learn(self) -> None:
        """Wait until the actor has loaded its pipeline.

        Raises:
            RuntimeError: it cannot.
        """
        with self._pool.explained(START):
            self.abilities = self._pool.ray.get(self._actor.abilities.remote())

    def generate(
        self, settings: Settings, items: Sequence[Item], on_progress: Callable[[int, int], None]
    ) -> list[Generated]:
        """As :meth:`Engine.generate`.

        Raises:
            LostError: the actor died.
        """
        ray, images = self._pool.ray, []
        try:
            stream = self._actor.generate.remote(settings, items)
            for reference in stream:
                told = ray.get(reference)
                if isinstance(told, list):
                    images = told
                    continue
                try:
                    on_progress(*told)
                except BaseException:
                    self._stop(stream)
                    raise
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            log.info("a replica died: %s", remote_reason(error))
            raise LostError(remote_reason(error).partition(". ")[0]) from error
        return images

    def restore(self, is_over: Callable[[], bool]) -> bool:
        """Start another actor, and wait until it is ready; False if ``is_over`` was true before."""
        ray = self._pool.ray
        while not is_over():
            ray.kill(self._actor)
            self._actor = self._start()
            ready = self._actor.abilities.remote()
            while not is_over():
                try:
                    ray.get(ready, timeout=PATIENCE)
                except ray.exceptions.GetTimeoutError:
                    continue  # it waits for room on the cluster, or loads
                except ray.exceptions.RayError as error:
                    log.warning("a replica could not be started again: %s", remote_reason(error))
                    time.sleep(PATIENCE)
                    break
                return True
        return False

    def _start(self) -> Any:
        options = {"num_cpus": self._pool.cpus, "num_gpus": self._pool.gpus, "max_concurrency": 2}
        return self._pool.ray.remote(_Actor).options(**options).remote(self._load, os.getcwd())

    def _stop(self, stream: Iterator[Any]) -> None:
        """End a generation at its next step, and wait for that: one thread may generate at a time."""
        ray = self._pool.ray
        self._actor.stop.remote()
        for reference in stream:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError:
                return


def replicas(pool: Pool, load: Callable[[], Engine]) -> list[Replica]:
    """An engine in each actor of a cluster.

    Raises:
        RuntimeError: one cannot be made.
    """
    started = [Replica(pool, load) for _ in range(pool.size)]
    for replica in started:
        replica.learn()
    return started


class _StoppedError(Exception):
    """Nobody waits for the images."""


class _Actor:
    """An engine in a process of Ray."""

    def __init__(self, load: Callable[[], Engine], folder: str) -> None:
        stand_in(folder)
        self._engine = load()
        self._thread = ThreadPoolExecutor(1)
        self._is_stopped = threading.Event()

    def abilities(self) -> Abilities:
        return self._engine.abilities

    def stop(self) -> None:
        self._is_stopped.set()

    def generate(self, settings: Settings, items: Sequence[Item]) -> Iterator[Step | list[Generated]]:
        """Each step when it is done, then the images."""
        self._is_stopped.clear()
        steps: SimpleQueue[Step | None] = SimpleQueue()

        def report(done: int, total: int) -> None:
            if self._is_stopped.is_set():
                raise _StoppedError
            steps.put((done, total))

        images = self._thread.submit(self._engine.generate, settings, items, report)
        images.add_done_callback(lambda _: steps.put(None))
        while (step := steps.get()) is not None:
            yield step
        yield images.result()
