"""Runs the missing items of a plan: in this process, or on a Ray cluster with one pipeline an actor."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidOptionError, MissingPackageError
from .generator import Generator, Outcome
from .plan import Item, Job, Plan

LOCAL = "local"
"""The address that stands for a cluster of this machine, which ends with the job."""
USUAL_CPUS = 0.5
"""CPUs of an actor without a GPU. A whole one each can leave none to the tasks that feed the actors, which hangs."""
BLOCKS = 8
"""Blocks of items for each actor: what an actor that dies was at work on is at most one of them."""


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


@dataclass(frozen=True)
class Cluster:
    """Actors on a Ray cluster.

    Attributes:
        address: "local", "auto", or the address of a cluster.
        actors: how many; None is one for each GPU, or for each two CPUs where there is no GPU.
        gpus, cpus: of an actor; None is one GPU where there is one, else a share of a CPU.
    """

    address: str
    actors: int | None = None
    gpus: float | None = None
    cpus: float | None = None


def on_ray(plan: Plan, cluster: Cluster) -> tuple[int, Iterator[Outcome]]:
    """The number of actors, and the outcomes of the plan's missing items in any order.

    Ray executes an item at least once: after the death of an actor it repeats the items whose outcomes were not told,
    and files that exist are not made again.

    Raises:
        MissingPackageError: Ray is not installed.
        InvalidOptionError: the cluster cannot be reached, or is too small.
    """
    ray = _connect(cluster.address)
    resources = ray.cluster_resources()
    gpus = cluster.gpus if cluster.gpus is not None else float(resources.get("GPU", 0) >= 1)
    cpus = cluster.cpus if cluster.cpus is not None else USUAL_CPUS
    actors = cluster.actors or max(1, int(resources["GPU"] / gpus if gpus else resources.get("CPU", 1) / 2))
    for name, each in (("GPU", gpus), ("CPU", cpus)):
        if actors * each > resources.get(name, 0):
            raise InvalidOptionError(
                f"{actors} actors with {each:g} {name} each need more than the cluster's {resources.get(name, 0):g}: "
                "ask for fewer actors, or a smaller share each"
            )
    return actors, _outcomes(ray, plan, actors, gpus, cpus)


def _connect(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingPackageError(
            "--ray needs the package ray with its data library: pip install 'spectrum-diffusion[ray]'"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised too, and told once
    try:
        own = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}} if address == LOCAL else {}
        ray.init(address=address, logging_level="error", log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InvalidOptionError(
            f"--ray {address} cannot be reached ({error}): give the address of a running cluster, or local"
        ) from error
    return ray


def _outcomes(ray: Any, plan: Plan, actors: int, gpus: float, cpus: float) -> Iterator[Outcome]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = plan.missing
    try:
        # The number of blocks is set at the source: behind a repartition the actors can wait for ever.
        rows = ray.data.from_items([vars(item) for item in items], override_num_blocks=min(len(items), BLOCKS * actors))
        outcomes = rows.map(
            _Actor,
            fn_constructor_args=(plan.job,),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in outcomes.iter_rows():
            yield Outcome(**row)
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the cluster gave up ({reason_of(error)}): the files that exist are kept, run the same command again"
        ) from error
    finally:
        ray.shutdown()


def reason_of(error: BaseException) -> str:
    """The message of an exception in another process, which Ray puts last, as ``module.Name: text``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else type(error).__name__


class _Actor:
    """A generator in a process of Ray."""

    def __init__(self, job: Job) -> None:
        self._generator = Generator(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return vars(self._generator(Item(**row)))
