"""A bounded queue of images, and a thread for each engine that generates them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from ..core.words import first_line
from ..errors import InvalidOptionError
from .abilities import Settings
from .engine import AnyEngine, Generated, Item, LostError
from .failures import DeadlineError, GenerationError, QueueFullError, RequestError, ShuttingDownError
from .limits import Limits
from .metrics import Metrics

log = logging.getLogger(__name__)

STUCK = 10.0
"""Seconds in which a generation that nobody waits for reaches its next step, and ends."""
LOSSES = 2
"""Engines that a task may lose: what ends two of them would end the others too."""
SMOOTHING = 0.2
"""Weight of the latest image in the mean time of an image."""


@dataclass(eq=False)
class Task:
    """An image that waits or is being generated.

    Attributes:
        deadline: on the clock of ``time.monotonic``.
        on_progress: called in the worker's thread with the steps done and their number.
        batch: images of the call that generated it.
        losses: engines that died while they generated it.
    """

    item: Item
    settings: Settings
    deadline: float
    on_progress: Callable[[int, int], None] = lambda done, total: None
    result: Future[Generated] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    batch: int = 0
    seconds: float = 0.0
    losses: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it. A task past its deadline ends here."""
        if time.monotonic() > self.deadline:
            self.fail(DeadlineError("the request took longer than the server allows: ask for fewer steps or images"))
        return not self.result.done()

    def fail(self, error: RequestError) -> None:
        """End without an image, unless the task has ended."""
        with suppress(InvalidStateError):  # it ended in another thread
            self.result.set_exception(error)

    def succeed(self, generated: Generated) -> None:
        """End with an image, unless the task has ended."""
        with suppress(InvalidStateError):
            self.result.set_result(generated)


class _UnwantedError(Exception):
    """Nobody waits for any image of the call."""


class Worker:
    """Generates images in the order of their arrival. Images that may share a call and wait go together.

    Args:
        engines: they take what waits as they get free.
        limits: of the queue and of a call.
    """

    def __init__(self, engines: Sequence[AnyEngine], limits: Limits) -> None:
        self.abilities, self.limits = engines[0].abilities, limits
        self.is_closing = False
        self._is_over = False
        self._waiting: deque[Task] = deque()
        self._running: dict[AnyEngine, Sequence[Task]] = {}
        self._ready = set(engines)
        self._changed = threading.Condition()
        self._image_seconds = 1.0
        self.metrics = Metrics(lambda: len(self._waiting), lambda: self.ready)
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name="spectrum-worker", daemon=True)
            for engine in engines
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> int:
        """Engines that work, or could."""
        return len(self._ready)

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        """Images in the queue, and those that are being generated."""
        return len(self._waiting) + sum(map(len, self._running.copy().values()))

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue the images of a request, all or none.

        Raises:
            QueueFullError: they do not fit. Its header says when to try again.
            ShuttingDownError: the server takes nothing more.
        """
        with self._changed:
            if self.is_closing:
                raise ShuttingDownError("the server is shutting down: send the request to another one")
            self._drop_unwanted()
            if len(self._waiting) + len(tasks) > self.limits.queue:
                seconds = max(1, math.ceil(len(self._waiting) * self._image_seconds / max(1, self.ready)))
                raise QueueFullError(
                    f"{len(self._waiting)} images wait, and the queue holds {self.limits.queue}: try again in "
                    f"{seconds} s",
                    seconds,
                )
            self._waiting.extend(tasks)
            self._changed.notify()

    def close(self, grace: float) -> None:
        """Take no more requests, and end those that are not done after ``grace`` seconds. Returns at once.

        A second call may shorten the time. It takes no lock, so that a signal handler may call it.
        """
        self.is_closing = True
        timer = threading.Timer(grace, self._end)
        timer.daemon = True
        timer.start()

    def join(self) -> None:
        """End what is left, and wait for the threads."""
        self.is_closing = True
        self._end()
        for thread in self._threads:
            thread.join(timeout=STUCK)

    def _end(self) -> None:
        self._is_over = True
        with self._changed:
            for task in (*self._waiting, *(task for batch in self._running.values() for task in batch)):
                task.fail(ShuttingDownError("the server shut down before the image was done: send the request again"))
            self._changed.notify_all()

    def _work(self, engine: AnyEngine) -> None:
        try:
            while batch := self._next(engine):
                try:
                    self._run(engine, batch)
                except LostError as error:
                    self._lost(engine, batch, error)
                finally:
                    with self._changed:
                        self._running.pop(engine, None)
                        self._changed.notify_all()
        finally:
            self._ready.discard(engine)

    def _lost(self, engine: AnyEngine, batch: Sequence[Task], error: LostError) -> None:
        """Queue the images of an engine that died again, before all others, and restore the engine."""
        log.warning("a replica died, and another one is being started: %s", error)
        self.metrics.lost.inc()
        self._ready.discard(engine)
        with self._changed:
            for task in reversed(batch):
                task.losses += 1
                if task.is_wanted and task.losses < LOSSES:
                    self._waiting.appendleft(task)
                elif task.is_wanted:
                    self.metrics.failures.labels("replica_lost").inc()
                    task.fail(
                        GenerationError(
                            f"{LOSSES} replicas died while they generated the image ({error}): ask for a smaller one, "
                            "or try it again",
                            code="replica_lost",
                        )
                    )
            self._running.pop(engine, None)
            self._changed.notify_all()
        if engine.restore(lambda: self._is_over):
            self._ready.add(engine)

    def _next(self, engine: AnyEngine) -> Sequence[Task]:
        """The tasks of the engine's next call; empty once the worker is closed and nothing waits."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._waiting:
                    self._running[engine] = batch = self._take_batch()
                    return batch
                if self.is_closing and not self._running:  # what runs elsewhere may come back
                    return ()
                self._changed.wait(timeout=1.0)  # closing notifies nobody, since it takes no lock

    def _take_batch(self) -> list[Task]:
        first = self._waiting[0]
        settings = first.settings
        # One that lost an engine goes alone, so that it takes no other image with it.
        count = self.limits.batch if self.abilities.may_share(settings) and not first.losses else 1
        batch = [task for task in self._waiting if task.settings == settings][:count]
        self._waiting = deque(task for task in self._waiting if task not in batch)
        return batch

    def _drop_unwanted(self) -> None:
        wanted = deque(task for task in self._waiting if task.is_wanted)
        self._waiting = wanted

    def _run(self, engine: AnyEngine, batch: Sequence[Task]) -> None:
        """Generate a batch; if its call fails, each image by itself, so that one cannot spoil the others."""
        error = self._generate(engine, batch)
        if error is None:
            return
        if len(batch) > 1:
            log.warning("a call of %d images failed, so they are generated one by one: %s", len(batch), error)
            for task in batch:
                if task.is_wanted:
                    self._run(engine, [task])
        else:
            self.metrics.failures.labels(error.code).inc()
            batch[0].fail(error)

    def _generate(self, engine: AnyEngine, batch: Sequence[Task]) -> RequestError | None:
        """Generate a batch in one call of the pipeline; why that failed, or None."""
        begin, begun = time.monotonic(), False

        def report(done: int, total: int) -> None:
            nonlocal begun
            begun = True
            wanted = [task for task in batch if task.is_wanted]
            if not wanted:
                raise _UnwantedError
            for task in wanted:
                task.on_progress(done, total)

        try:
            images = engine.generate(batch[0].settings, [task.item for task in batch], report)
        except _UnwantedError:
            self.metrics.failures.labels("abandoned").inc(len(batch))
            return None
        except LostError:
            raise
        except Exception as error:  # a pipeline fails in any way, and the server goes on
            log.warning("a generation failed", exc_info=error)
            return _explained(error, begun)
        self._finish(batch, images, begin)
        return None

    def _finish(self, batch: Sequence[Task], images: Sequence[Generated], begin: float) -> None:
        seconds = time.monotonic() - begin
        self._image_seconds += SMOOTHING * (seconds / len(batch) - self._image_seconds)
        self.metrics.generated.observe(seconds)
        self.metrics.batch.observe(len(batch))
        for task, generated in zip(batch, images, strict=True):
            task.batch, task.seconds = len(batch), seconds
            self.metrics.waited.observe(begin - task.since)
            if generated.image is None:
                self.metrics.failures.labels("not_finite").inc()
                task.fail(
                    GenerationError(
                        "the pipeline computed numbers that are not finite, so there is no image: try another seed, "
                        "guidance or a lower speedup",
                        code="not_finite",
                    )
                )
                continue
            self.metrics.images.inc()
            self.metrics.steps.labels("evaluated").inc(generated.summary.nfe)
            self.metrics.steps.labels("skipped").inc(generated.summary.steps - generated.summary.nfe)
            task.succeed(generated)


def _explained(error: Exception, begun: bool) -> RequestError:
    """The answer to a request whose generation failed. Before the first step a pipeline checks its arguments."""
    if isinstance(error, InvalidOptionError) or (isinstance(error, ValueError | TypeError) and not begun):
        return RequestError(first_line(error))
    return GenerationError(f"the generation failed ({type(error).__name__}: {first_line(error)}): try it again")
