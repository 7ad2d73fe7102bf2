"""The cost of a method: time of the whole call and of its sampling loop, memory, evaluations, FLOP."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..core.flops import counting
from ..core.schedule import check_integer
from ..core.summary import Flops, Summary
from ..discovery import device_of
from ..errors import InvalidOptionError, UnsupportedModelError
from ..handle import enable
from ..memory import on_meta

T = TypeVar("T")
Timed = tuple[str, Mapping[str, Any]] | None
"""A method's name and its options, or None for the untouched pipeline."""


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition, in the order they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile: half of the repetitions lie between them."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


ALLOCATED = "allocated on the device"
"""The kind of memory that only the pipeline uses; the other kinds cover the whole process."""


@dataclass(frozen=True)
class Memory:
    """A peak in bytes, and its kind: allocated on a device, or resident in the process."""

    bytes: int
    kind: str


@dataclass(frozen=True)
class Loop:
    """Time of a sampling loop.

    Attributes:
        seconds: of the whole loop, as the device needs them.
        steps: seconds of each step on the device, between two updates of the progress bar.
        host: seconds of each step on the host, which runs ahead of a device.
    """

    seconds: float
    steps: tuple[float, ...]
    host: tuple[float, ...]


@dataclass(frozen=True)
class Spent:
    """Time and memory of one call.

    Attributes:
        seconds: of the whole call.
        loop: seconds of the sampling loop; None if the pipeline shows no progress bar around it.
        memory: the peak.
        loops: the loops one by one.
    """

    seconds: float
    loop: float | None
    memory: Memory
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Cost:
    """The cost of one method.

    Attributes:
        call: the whole pipeline call: text encoders, sampling loop, decoder.
        loop: the sampling loop; None if the pipeline shows no progress bar around it.
        memory: the highest peak of the repetitions.
        loops: the sampling loops of each repetition, in the order they ran.
        summary: that of the last timed generation; None for the untouched pipeline.
        flops: of all denoiser calls of one more generation, which is not timed; None if not counted.
    """

    call: Timing
    loop: Timing | None
    memory: Memory
    loops: tuple[Loop, ...] = ()
    summary: Summary | None = None
    flops: Flops | None = None


def measure(
    pipe: Any,
    call: Callable[[], Any],
    methods: Mapping[str, Timed],
    *,
    repeats: int = 5,
    warm_up: int = 1,
    flops: bool = False,
) -> dict[str, Cost]:
    """Time methods on a pipeline in turns, so that a slow phase of the machine affects all of them alike.

    Args:
        pipe: a diffusers pipeline without an enabled method.
        call: runs one generation with it, such as ``lambda: pipe("red apple", num_inference_steps=50)``.
        methods: label → method with its options, or None for the untouched pipeline.
        repeats: timed generations of each method.
        warm_up: generations of each method before them, which are not timed.
        flops: also count FLOP, in one more generation of each method.

    Raises:
        InvalidOptionError: there is no method, or a count is too small.
        SpectrumError: the pipeline does not support a method; :func:`supported` tells beforehand.
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


def supported(
    pipe: Any, call: Callable[[], Any], methods: Mapping[str, Timed]
) -> tuple[dict[str, Timed], dict[str, UnsupportedModelError]]:
    """Generate once with each method, which also warms it up.

    Returns:
        The methods that the pipeline supports; and for each of the others why not, by label.

    Raises:
        UnsupportedModelError: the pipeline supports none of them.
    """
    refusals: dict[str, UnsupportedModelError] = {}
    for label, method in methods.items():
        try:
            _generate(pipe, call, method)
        except UnsupportedModelError as refusal:
            refusals[label] = refusal
    working = {label: method for label, method in methods.items() if label not in refusals}
    if refusals and not any(working.values()):
        raise next(iter(refusals.values()))
    return working, refusals


def _generate(
    pipe: Any, call: Callable[[], Any], method: Timed, *, flops: bool = False
) -> tuple[Spent, Summary | None]:
    with ExitStack() as stack:
        handle = stack.enter_context(enable(pipe, method[0], flops=flops, **method[1])) if method else None
        _, spent = watched(pipe, call)
        return spent, handle.summary() if handle else None


def watched(pipe: Any, call: Callable[[], T]) -> tuple[T, Spent]:
    """Call a pipeline once: its result, and the time and memory of the call. Waits for the device before and after."""
    device = device_of(pipe)
    with _loop_timer(pipe, device) as loops_of:
        reset_peak_memory(device)
        synchronize(device)
        begin = time.perf_counter()
        result = call()
        synchronize(device)
        seconds, loops = time.perf_counter() - begin, loops_of()
        total = sum(loop.seconds for loop in loops) if loops else None
        return result, Spent(seconds, total, peak_memory(device), loops)


def _cost(samples: list[tuple[Spent, Summary | None]]) -> Cost:
    spent = [call for call, _ in samples]
    loops = [call.loop for call in spent if call.loop is not None]
    return Cost(
        call=Timing(tuple(call.seconds for call in spent)),
        loop=Timing(tuple(loops)) if loops else None,
        memory=max((call.memory for call in spent), key=lambda memory: memory.bytes),
        loops=tuple(loop for call in spent for loop in call.loops),
        summary=samples[-1][1],
    )


@contextmanager
def _loop_timer(pipe: Any, device: torch.device) -> Iterator[Callable[[], tuple[Loop, ...]]]:
    """Measures the time in the progress bar that pipelines put around their sampling loop, and between its updates."""
    timed: list[_Marks] = []
    original = pipe.progress_bar

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = original(*args, **kwargs)
        return _timed(bar, device, timed) if hasattr(bar, "__enter__") else bar

    pipe.progress_bar = progress_bar
    try:
        yield lambda: tuple(marks.loop() for marks in timed)  # called after a synchronization
    finally:
        del pipe.progress_bar


class _Marks:
    """Moments of a sampling loop, on the host and, where it has a clock of its own, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._has_events = device.type == "cuda"  # events need no synchronization within the call
        self._host: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def add(self) -> None:
        self._host.append(time.perf_counter())
        if self._has_events:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)

    def loop(self) -> Loop:
        host = tuple(after - before for before, after in pairwise(self._host))
        steps = tuple(1e-3 * before.elapsed_time(after) for before, after in pairwise(self._events)) or host
        return Loop(sum(steps), steps[:-1], host[:-1])  # the last mark is the end of the loop


def _mark_updates(bar: Any, marks: _Marks) -> None:
    """Mark each update of a progress bar, if it has updates."""
    update = getattr(bar, "update", None)
    if update is None:
        return

    def updated(*args: Any, **kwargs: Any) -> Any:
        marks.add()
        return update(*args, **kwargs)

    bar.update = updated


@contextmanager
def _timed(bar: Any, device: torch.device, timed: list[_Marks]) -> Iterator[Any]:
    marks = _Marks(device)
    with bar as entered:
        _mark_updates(entered, marks)
        marks.add()
        yield entered
        if device.type != "cuda":
            synchronize(device)
        marks.add()
        timed.append(marks)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work. A CPU always has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak if the system allows it; see :func:`peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid the reset; then the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark alone


def peak_memory(device: torch.device) -> Memory:
    """The peak since :func:`reset_peak_memory`.

    On CUDA, the memory that PyTorch allocated. Elsewhere the resident set of the whole process, including weights and
    libraries: since the reset on Linux, since the start of the process on other systems.
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
    """FLOP of one forward, counted on meta tensors, so that nothing is computed. A multiply-add counts as two.

    Args:
        model: a model on the meta device, or a diffusers model, whose configuration gives a copy there.
        inputs: arguments of its forward by name; only the shapes and dtypes of tensors matter.

    Raises:
        UnsupportedModelError: the model is not on the meta device and has no configuration.
    """
    there = all(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad(), counting() as counter:
        shapes = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), dict(inputs))
        (model if there else on_meta(model))(**shapes)
    return int(counter.get_total_flops())
