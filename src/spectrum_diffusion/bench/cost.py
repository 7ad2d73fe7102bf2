"""What a method costs: time of the whole call and of its sampling loop, memory, evaluations, FLOP."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..core.flops import counting
from ..core.schedule import check_integer
from ..core.summary import Flops, Summary
from ..errors import InvalidOptionError, UnsupportedModelError
from ..handle import enable

T = TypeVar("T")

MethodOptions = tuple[str, Mapping[str, Any]]
"""A method's name with its options, as ``enable`` takes them."""


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition, in the order they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third: half of the repetitions lie between."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


ALLOCATED = "allocated on the device"
"""Kind of a memory that is the pipeline's alone; the others are of the whole process."""


@dataclass(frozen=True)
class Memory:
    """Peak in bytes, and of what: a device's allocated memory, or what the process had resident."""

    bytes: int
    kind: str


@dataclass(frozen=True)
class Spent:
    """What one call took.

    Attributes:
        seconds: of the whole call.
        loop: seconds of the sampling loop alone; None for a pipeline that shows no progress bar around it.
        memory: its peak.
    """

    seconds: float
    loop: float | None
    memory: Memory


@dataclass(frozen=True)
class Cost:
    """What one method costs.

    Attributes:
        call: of the whole pipeline call: text encoders, sampling loop, decoder.
        loop: of the sampling loop alone; None for a pipeline that shows no progress bar around it.
        memory: the highest of the repetitions.
        summary: of the method's last timed generation; None for the untouched pipeline.
        flops: of the denoiser's calls of one generation, counted apart from the timed ones; None where not counted.
    """

    call: Timing
    loop: Timing | None
    memory: Memory
    summary: Summary | None = None
    flops: Flops | None = None


def measure(
    pipe: Any,
    call: Callable[[], Any],
    methods: Mapping[str, MethodOptions | None],
    *,
    repeats: int = 5,
    warm_up: int = 1,
    flops: bool = False,
) -> dict[str, Cost]:
    """Time methods on a pipeline, by turns: a machine that slows down slows all alike.

    Args:
        pipe: a diffusers pipeline, enabled for nothing.
        call: makes one generation with it, such as ``lambda: pipe("red apple", num_inference_steps=50)``.
        methods: label → method with its options, or None for the untouched pipeline.
        repeats: timed generations of each.
        warm_up: generations of each before, which are not timed.
        flops: count FLOP too, in one more generation of each method.

    Raises:
        InvalidOptionError: no method, or a count below what makes sense.
        SpectrumError: a method can't be had on this pipeline.
    """
    check_integer("repeats", repeats, least=1)
    check_integer("warm_up", warm_up, least=0)
    if not methods:
        raise InvalidOptionError("there is no method to measure: give one or more, None for the untouched pipeline")
    timed: dict[str, list[tuple[Spent, Summary | None]]] = {label: [] for label in methods}
    order = list(methods)
    for repetition in range(-warm_up, repeats):
        first = repetition % len(order)  # each begins a round in turn, so that none always runs after the same one
        for label in (*order[first:], *order[:first]):
            sample = _generate(pipe, call, methods[label])
            if repetition >= 0:
                timed[label].append(sample)
    costs = {label: _cost(samples) for label, samples in timed.items()}
    for label, method in methods.items():
        if flops and method:
            _, summary = _generate(pipe, call, method, flops=True)
            costs[label] = replace(costs[label], flops=summary.flops if summary else None)
    return costs


def _generate(
    pipe: Any, call: Callable[[], Any], method: MethodOptions | None, *, flops: bool = False
) -> tuple[Spent, Summary | None]:
    with ExitStack() as stack:
        handle = stack.enter_context(enable(pipe, method[0], flops=flops, **method[1])) if method else None
        _, spent = watched(pipe, call)
        return spent, handle.summary() if handle else None


def watched(pipe: Any, call: Callable[[], T]) -> tuple[T, Spent]:
    """Make one call of a pipeline; what it gave, and what it took. A device is waited for before and after."""
    device = device_of(pipe)
    with _loop_timer(pipe, device) as loop:
        reset_peak_memory(device)
        synchronize(device)
        begin = time.perf_counter()
        result = call()
        synchronize(device)
        return result, Spent(time.perf_counter() - begin, loop(), peak_memory(device))


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes: with offload that is not where its weights lie."""
    return torch.device(getattr(pipe, "_execution_device", None) or pipe.device)


def _cost(samples: list[tuple[Spent, Summary | None]]) -> Cost:
    spent = [call for call, _ in samples]
    loops = [call.loop for call in spent if call.loop is not None]
    return Cost(
        call=Timing(tuple(call.seconds for call in spent)),
        loop=Timing(tuple(loops)) if loops else None,
        memory=max((call.memory for call in spent), key=lambda memory: memory.bytes),
        summary=samples[-1][1],
    )


@contextmanager
def _loop_timer(pipe: Any, device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Seconds between entering and leaving the progress bar, which pipelines put around their sampling loop."""
    spans: list[Callable[[], float]] = []
    original = pipe.progress_bar

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = original(*args, **kwargs)
        return _timed(bar, device, spans) if hasattr(bar, "__enter__") else bar

    pipe.progress_bar = progress_bar
    try:
        yield lambda: sum(span() for span in spans) if spans else None
    finally:
        del pipe.progress_bar


@contextmanager
def _timed(bar: Any, device: torch.device, spans: list[Callable[[], float]]) -> Iterator[Any]:
    with bar as entered:
        if device.type == "cuda":  # events cost no synchronisation within the call
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield entered
            end.record()
            spans.append(lambda: begin.elapsed_time(end) / 1e3)  # asked for after a synchronisation
        else:
            synchronize(device)
            start = time.perf_counter()
            yield entered
            synchronize(device)
            seconds = time.perf_counter() - start
            spans.append(lambda: seconds)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; a CPU has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where that can be done; see :func:`peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid the reset; then the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark alone


def peak_memory(device: torch.device) -> Memory:
    """The peak since :func:`reset_peak_memory`.

    On CUDA what PyTorch had allocated. Elsewhere the resident set of the whole process, weights and libraries
    included: since the reset on Linux, since its beginning on other systems.
    """
    if device.type == "cuda":
        return Memory(torch.cuda.max_memory_allocated(device), ALLOCATED)
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return Memory(1024 * int(kilobytes), "resident in the process")
    return _peak_since_start()


def _peak_since_start() -> Memory:
    try:
        import resource
    except ImportError:  # Windows
        return Memory(0, "unknown on this system")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(unit * peak, "resident in the process since its start")


def forward_flops(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """FLOP of one forward, two for a multiplication with its addition, counted on meta tensors: nothing is computed.

    Args:
        model: on the meta device, or a diffusers model, of which a meta twin is made from its configuration.
        inputs: arguments of its forward by name; only the shapes and dtypes of tensors matter.

    Raises:
        UnsupportedModelError: the model is not on the meta device and has no configuration to make it from.
    """
    with torch.no_grad(), counting() as counter:
        on_meta(model)(**tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), dict(inputs)))
    return int(counter.get_total_flops())


def on_meta(model: nn.Module) -> nn.Module:
    """The model itself if it is on the meta device, else a twin of the same configuration there."""
    if all(parameter.is_meta for parameter in model.parameters()):
        return model
    make = getattr(type(model), "from_config", None)
    if make is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no configuration to make it from on the meta device: "
            "build it under torch.device('meta') and give that"
        )
    with torch.device("meta"):
        twin: nn.Module = make(model.config)
    return twin.eval()
