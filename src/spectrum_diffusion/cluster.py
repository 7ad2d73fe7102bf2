"""Processes on a Ray cluster, each with a pipeline of its own. Ray is imported when a cluster is joined."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InvalidOptionError, MissingPackageError, SpectrumError

LOCAL = "local"
"""The address that stands for a cluster of this machine, which ends with the command."""
USUAL_CPUS = 0.5
"""CPUs of an actor without a GPU. A whole one each can leave none to the tasks that feed the actors, which hangs."""
BLOCKS = 8
"""Blocks of rows for each actor: what an actor that dies was at work on is at most one of them."""

ANSWER_SECONDS = 10.0
"""Time in which the head of a cluster takes a connection, and in which it greets."""
SETTINGS = 4
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
"""How a client of HTTP/2, and so of gRPC, begins: a fixed text and a frame of settings (RFC 9113, § 3.4)."""

AGAIN = "what is finished is kept, run the same command again"

Work = Callable[[dict[str, Any]], dict[str, Any]]
"""What an actor does with a row: a dict of plain values gives another one."""


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


@contextmanager
def joined(cluster: Cluster) -> Iterator[Pool]:
    """The actors for which a cluster has room. This process leaves it at the end of the block, which ends them.

    Raises:
        MissingPackageError: Ray is not installed.
        InvalidOptionError: the cluster cannot be reached, or is too small.
    """
    ray = _reach(cluster.address)
    try:
        yield Pool.on(ray, cluster)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Pool:
    """The actors of a cluster that this process has joined.

    Attributes:
        ray: the module.
        size: number of actors.
        gpus, cpus: of each.
    """

    ray: Any
    size: int
    gpus: float
    cpus: float

    @classmethod
    def on(cls, ray: Any, cluster: Cluster) -> Pool:
        """As many actors as were asked for, or as there is room for.

        Raises:
            InvalidOptionError: the cluster is too small for them.
        """
        resources = ray.cluster_resources()
        gpus = cluster.gpus if cluster.gpus is not None else float(resources.get("GPU", 0) >= 1)
        cpus = cluster.cpus if cluster.cpus is not None else USUAL_CPUS
        room = resources["GPU"] / gpus if gpus and "GPU" in resources else resources.get("CPU", 1) / 2
        size = cluster.actors or max(1, int(room))
        for name, each in (("GPU", gpus), ("CPU", cpus)):
            if size * each > resources.get(name, 0):
                raise InvalidOptionError(
                    f"{size} actors with {each:g} {name} each need more than the cluster's "
                    f"{resources.get(name, 0):g}: ask for fewer actors, or a smaller share each"
                )
        return cls(ray, size, gpus, cpus)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a process that has an actor's resources.

        Raises:
            SpectrumError: it raised this error.
            RuntimeError: it failed in another way.
        """
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(_called)
        with self.explained(AGAIN):
            return self.ray.get(task.remote(function, arguments, os.getcwd()))

    def map(self, make: Callable[..., Work], arguments: Sequence[Any], rows: list[dict[str, Any]]) -> Iterator[Any]:
        """What the actors make of rows, in any order.

        Ray does a row at least once: after the death of an actor it repeats the rows whose results were not told.

        Args:
            make: makes an actor's work of the arguments, in its process.

        Raises:
            RuntimeError: an actor could not be made, or did not catch an exception.
        """
        data = self.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # The number of blocks is set at the source: behind a repartition the actors can wait for ever.
        blocks = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS * self.size))
        results = blocks.map(
            _Actor,
            fn_constructor_args=(make, arguments, os.getcwd()),
            compute=data.ActorPoolStrategy(size=self.size),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        with self.explained(AGAIN):
            yield from results.iter_rows()

    @contextmanager
    def explained(self, advice: str) -> Iterator[None]:
        """Raise this library's own errors as they are, and a :class:`RuntimeError` with an advice for Ray's."""
        try:
            yield
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpectrumError):  # as where the work is done here
                raise error.cause from None
            raise RuntimeError(f"the cluster gave up ({remote_reason(error)}): {advice}") from error
        except self.ray.exceptions.RayError as error:
            raise RuntimeError(f"the cluster gave up ({remote_reason(error)}): {advice}") from error


def remote_reason(error: BaseException) -> str:
    """The message of an exception in another process, which Ray puts last, as ``module.Name: text``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else type(error).__name__


def _reach(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingPackageError(
            "--ray needs the package ray with its data library: pip install 'spectrum-diffusion[ray]'"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error is raised too, and told once
    _check_answers(address)
    try:
        own = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}} if address == LOCAL else {}
        ray.init(address=address, logging_level="error", log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from error
    return ray


def _check_answers(address: str) -> None:
    """Refuse the address of a machine or a port where no cluster answers: Ray would try for many minutes.

    Raises:
        InvalidOptionError: nobody answers, or something that is no cluster, such as Ray's dashboard.
    """
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = meant.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # Ray finds it, or says what is wrong
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            _check_greets(connection)
    except (OSError, OverflowError) as error:
        raise _unreachable(address if meant == address else f"{address}, RAY_ADDRESS={meant}", error) from None


def _check_greets(connection: socket.socket) -> None:
    """Raise :class:`ConnectionError` unless the other side speaks gRPC, as a cluster does on all its ports."""
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return
    connection.sendall(GREETING)
    try:
        frame = connection.recv(9)
    except OSError:
        frame = b""
    if frame[3:4] != bytes([SETTINGS]):
        raise ConnectionError("what answers there is not a cluster, whose head usually listens at port 6379")


def _unreachable(address: str, error: Exception) -> InvalidOptionError:
    return InvalidOptionError(
        f"--ray {address} cannot be reached ({error}): give the address of a running cluster, or local"
    )


def stand_in(folder: str) -> None:
    """Make relative paths mean in this process what they mean in the one that started it, where there is its folder."""
    if Path(folder).is_dir():
        with suppress(OSError):
            os.chdir(folder)


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    stand_in(folder)
    return function(*arguments)


class _Actor:
    """Work in a process of Ray."""

    def __init__(self, make: Callable[..., Work], arguments: Sequence[Any], folder: str) -> None:
        stand_in(folder)
        self._work = make(*arguments)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._work(row)
