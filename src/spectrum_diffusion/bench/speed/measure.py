"""Measures methods on a built pipeline: in turns for time, and once more each for memory, FLOP and synchronizations."""

from __future__ import annotations

import platform
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...core.allocations import Allocations
from ...errors import UnsupportedModelError
from ...handle import enable
from ...memory import Shadows, rehearse
from ...methods import make_method
from ...plan import versions
from ..cost import Cost, Timed, forward_flops, measure, supported
from .build import Setting, build

MethodOptions = tuple[str, Mapping[str, Any]]
"""A method's name and its options."""
UNTOUCHED = "untouched"
WARNING = "called a synchronizing CUDA operation"
PACKAGE = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Row:
    """A method, measured. What could not be measured is None.

    Attributes:
        method: its label.
        steps: sampling steps T.
        nfe: evaluated steps; T for the untouched pipeline.
        evaluated_ms: milliseconds of an evaluated step, the median.
        skipped_ms: likewise of a skipped step.
        host_ms: milliseconds of a skipped step on the host, with what the pipeline and the scheduler do there.
        loop_seconds: of the sampling loop, the median.
        speedup: of the sampling loop, over the untouched one.
        ideal: T / NFE.
        share: speedup / ideal.
        memory_above: bytes of the peak above the untouched peak.
        history_bytes: what the method keeps at most.
        synchronizations: of the device, that this library causes in a generation.
        flops: of all denoiser calls.
        evaluations: the same in units of whole evaluations.
        error: why the method does not run on this architecture.
    """

    method: str
    steps: int
    nfe: int | None
    evaluated_ms: float | None = None
    skipped_ms: float | None = None
    host_ms: float | None = None
    loop_seconds: float | None = None
    speedup: float | None = None
    ideal: float | None = None
    share: float | None = None
    memory_above: int | None = None
    history_bytes: int | None = None
    synchronizations: int | None = None
    flops: int | None = None
    evaluations: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Speed:
    """A measurement: what ran, where, and a row for each method.

    Attributes:
        kind: "measured", or "dry run" if nothing was computed.
        machine: where it ran.
        versions: of the packages.
    """

    arch: str
    setting: Mapping[str, Any]
    rows: Sequence[Row]
    kind: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def measure_speed(arch: str, setting: Setting, methods: Mapping[str, MethodOptions], repeats: int = 3) -> Speed:
    """Run the untouched pipeline and the methods in turns.

    Args:
        arch: name of the architecture.
        setting: what is built.
        methods: label → name and options. Those that do not run get a row with the error.
        repeats: timed generations of each.

    Raises:
        UnsupportedModelError: none of the methods runs.
    """
    pipe = build(setting)
    call = _caller(pipe, setting)
    every: dict[str, Timed] = {UNTOUCHED: None, **methods}
    working, refusals = supported(pipe, call, every)
    costs = measure(pipe, call, working, repeats=repeats, warm_up=0, flops=not setting.compiled)
    base = _untouched(costs[UNTOUCHED], setting.steps)
    peaks = {label: _peak(pipe, call, every[label], setting) for label in costs}
    rows = [base]
    for label, method in methods.items():
        if label in refusals:
            rows.append(Row(label, setting.steps, None, error=str(refusals[label])))
            continue
        above = _difference(peaks[label], peaks[UNTOUCHED])
        if setting.device.startswith("cuda"):
            above = costs[label].memory.bytes - costs[UNTOUCHED].memory.bytes
        rows.append(_row(label, costs[label], base, above, _synchronizations(pipe, call, method, setting)))
    return _speed(arch, setting, rows, "measured")


def dry_run(arch: str, setting: Setting, methods: Mapping[str, MethodOptions]) -> Speed:
    """What the methods keep and what an evaluation computes, from shapes alone: no weights are made, nothing runs.

    Raises:
        UnsupportedModelError: none of the methods runs.
    """
    pipe = build(setting, weights=False)
    call = setting.call()
    base: Row | None = None
    rows: list[Row] = []
    refusals: list[UnsupportedModelError] = []
    for label, (name, options) in methods.items():
        method = make_method(name, **options)
        shadows = Shadows()
        try:
            estimate = rehearse(pipe, method, call, shadows)
        except UnsupportedModelError as refusal:
            refusals.append(refusal)
            rows.append(Row(label, setting.steps, None, error=str(refusal)))
            continue
        if base is None:
            flops = sum(count * forward_flops(model, inputs) for model, inputs, count in shadows.inputs())
            base = Row(UNTOUCHED, setting.steps, setting.steps, flops=flops, evaluations=float(setting.steps))
        summary = estimate.summary
        rows.append(
            Row(
                label,
                summary.steps,
                summary.nfe,
                ideal=setting.steps / summary.nfe,
                memory_above=estimate.peak_bytes,
                history_bytes=estimate.history_bytes,
            )
        )
    if base is None:
        raise refusals[0]
    return _speed(arch, setting, [base, *rows], "dry run")


def _caller(pipe: Any, setting: Setting) -> Callable[[], Any]:
    arguments = setting.call()
    return lambda: pipe(**arguments, generator=torch.Generator().manual_seed(0))


def _untouched(cost: Cost, steps: int) -> Row:
    assert cost.loop is not None
    evaluated = _milliseconds([loop.steps for loop in cost.loops], range(1, steps))
    return Row(UNTOUCHED, steps, steps, evaluated_ms=evaluated, loop_seconds=cost.loop.median, speedup=1.0, ideal=1.0)


def _row(label: str, cost: Cost, base: Row, above: int | None, synchronizations: int | None) -> Row:
    summary = cost.summary
    assert summary is not None
    assert cost.loop is not None
    assert base.loop_seconds is not None
    evaluated = [step for step in summary.evaluated if step]  # the first step pays for what the others reuse
    skipped = sorted(set(range(summary.steps)) - set(summary.evaluated))
    speedup, ideal = base.loop_seconds / cost.loop.median, base.steps / summary.nfe
    return Row(
        label,
        summary.steps,
        summary.nfe,
        evaluated_ms=_milliseconds([loop.steps for loop in cost.loops], evaluated),
        skipped_ms=_milliseconds([loop.steps for loop in cost.loops], skipped),
        host_ms=_milliseconds([loop.host for loop in cost.loops], skipped),
        loop_seconds=cost.loop.median,
        speedup=speedup,
        ideal=ideal,
        share=speedup / ideal,
        memory_above=above,
        history_bytes=summary.history_bytes if summary.package is None else None,
        synchronizations=synchronizations,
        flops=cost.flops.total if cost.flops else None,
        evaluations=cost.flops.evaluations if cost.flops else None,
    )


def _milliseconds(loops: Sequence[Sequence[float]], steps: Sequence[int]) -> float | None:
    """The median over steps and repetitions."""
    times = [1e3 * loop[step] for loop in loops for step in steps if step < len(loop)]
    return statistics.median(times) if times else None


def _peak(pipe: Any, call: Callable[[], Any], method: MethodOptions | None, setting: Setting) -> int | None:
    """Bytes that a generation allocates at most, where the device does not count them itself."""
    if setting.compiled or setting.device != "cpu":
        return None
    with _enabled(pipe, method), Allocations() as allocations:
        call()
    return allocations.peak


def _difference(peak: int | None, base: int | None) -> int | None:
    return None if peak is None or base is None else peak - base


def _synchronizations(pipe: Any, call: Callable[[], Any], method: MethodOptions | None, setting: Setting) -> int | None:
    """Device synchronizations in a generation that code of this library causes; None without a CUDA device."""
    if not setting.device.startswith("cuda"):
        return None
    with _enabled(pipe, method):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return count_synchronizations(call)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def count_synchronizations(call: Callable[[], Any]) -> int:
    """Warnings of PyTorch's synchronization debug mode that come from a file of this library."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return sum(WARNING in str(warning.message) and warning.filename.startswith(PACKAGE) for warning in caught)


def _enabled(pipe: Any, method: MethodOptions | None) -> ExitStack:
    stack = ExitStack()
    if method is not None:
        stack.enter_context(enable(pipe, method[0], **method[1]))
    return stack


def _speed(arch: str, setting: Setting, rows: Sequence[Row], kind: str) -> Speed:
    shown = {
        "scale": setting.scale,
        "model": setting.architecture.model,
        "config": setting.config(),
        **setting.size(),
        "steps": setting.steps,
        "batch": setting.batch,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "compiled": setting.compiled,
    }
    return Speed(arch, shown, rows, kind, machine(setting.device), versions())


def machine(device: str) -> dict[str, Any]:
    """The hardware that a measurement depends on."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"device": f"{platform.machine()} {device}", "threads": torch.get_num_threads()}
