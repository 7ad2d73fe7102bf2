"""Runs the missing items of a plan: in this process, or on a Ray cluster with one pipeline an actor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...cluster import Cluster, Pool, Work
from .generator import Generator, Outcome
from .plan import Item, Job, Plan


def here(plan: Plan) -> Iterator[Outcome]:
    """The outcomes of the plan's missing items, generated in this process."""
    items = plan.missing
    if not items:
        return
    generator = Generator(plan.job)
    for item in items:
        yield generator(item)
        if generator.stopped is not None:
            return


def on_ray(plan: Plan, cluster: Cluster) -> tuple[int, Iterator[Outcome]]:
    """The number of actors, and the outcomes of the plan's missing items in any order.

    Ray executes an item at least once, and files that exist are not made again.

    Raises:
        MissingPackageError: Ray is not installed.
        InvalidOptionError: the cluster cannot be reached, or is too small.
    """
    pool = Pool(cluster)
    return pool.size, _outcomes(pool, plan)


def _outcomes(pool: Pool, plan: Plan) -> Iterator[Outcome]:
    try:
        for row in pool.map(_generating, (plan.job,), [vars(item) for item in plan.missing]):
            yield Outcome(**row)
    finally:
        pool.leave()


def _generating(job: Job) -> Work:
    """A generator that takes and returns rows."""
    generator = Generator(job)

    def generate(row: dict[str, Any]) -> dict[str, Any]:
        return vars(generator(Item(**row)))

    return generate
