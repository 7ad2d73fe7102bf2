"""What Prometheus reads from the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        waiting: returns the number of images in the queue.
        ready: returns the number of pipelines that work, or could.
    """

    def __init__(self, waiting: Callable[[], int], ready: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("spectrum_requests", "Answered image requests.", ["status"], registry=registry)
        self.images = Counter("spectrum_images", "Generated images.", registry=registry)
        self.failures = Counter("spectrum_failures", "Images that were not generated.", ["reason"], registry=registry)
        self.steps = Counter("spectrum_steps", "Sampling steps of generated images.", ["action"], registry=registry)
        self.lost = Counter("spectrum_replicas_lost", "Replicas that died.", registry=registry)
        self.batch = Histogram(
            "spectrum_batch_images", "Images in a call of the pipeline.", buckets=(1, 2, 4, 8, 16), registry=registry
        )
        self.waited = Histogram("spectrum_wait_seconds", "Time in the queue.", buckets=SECONDS, registry=registry)
        self.generated = Histogram(
            "spectrum_generation_seconds", "Time of a call of the pipeline.", buckets=SECONDS, registry=registry
        )
        Gauge("spectrum_queue_images", "Images in the queue.", registry=registry).set_function(waiting)
        Gauge("spectrum_replicas", "Pipelines that are ready.", registry=registry).set_function(ready)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
