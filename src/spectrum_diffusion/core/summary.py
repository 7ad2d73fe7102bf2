"""What a generation did: the trace of its denoiser calls, and the summary read from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from .flops import counting
from .html import summary_html

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Action = Literal["evaluated", "forecast", "partial", "fallback"]


@dataclass(slots=True)
class Call:
    """One call of a denoiser within a run.

    Attributes:
        step: the step.
        branch: label of the guidance branch.
        action: the whole denoiser ran as planned ("evaluated") or because no forecast was possible ("fallback"), its
            blocks were skipped ("forecast"), or a part of them ran ("partial").
        reason: why no forecast was possible.
        first: whether it is the first call of its step.
        error: relative L2 error of the forecast, with ``audit=True``.
        flops: FLOP of the call, with ``flops=True``.
        milliseconds: returns the duration of the call, with ``timing=True``.
    """

    step: int
    branch: str
    action: Action
    reason: str = ""
    first: bool = True
    error: float | None = None
    flops: int | None = None
    milliseconds: Callable[[], float] | None = None

    def add_milliseconds(self, measured: Callable[[], float] | None) -> None:
        """Add the time of another part of the step."""
        if measured is not None:
            before = self.milliseconds
            self.milliseconds = lambda: measured() + (before() if before is not None else 0.0)

    @property
    def ran(self) -> bool:
        """Whether the whole denoiser ran, as planned or as a fallback."""
        return self.action in ("evaluated", "fallback")


@dataclass
class Trace:
    """The calls of one sampling loop in order, and what else a summary needs to know of it.

    Attributes:
        stage: name of the first denoiser of the loop.
        total: number of steps that the clock tells.
        history_bytes: the most memory that the loop held.
        held_bytes: the memory that it holds now.
        notes: what a user should know beside the counts → how often it happened.
        unread: steps, and whether what is kept of them is finite, on the device.
    """

    method: str
    site: str
    package: tuple[str, str] | None = None
    device: torch.device | None = None
    timing: bool = False
    flops: bool = False
    calls: list[Call] = field(default_factory=list)
    history_bytes: int = 0
    held_bytes: int = 0
    wall_seconds: float | None = None
    earlier_loops: int = 0
    stage: str = ""
    total: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    unread: list[tuple[int, torch.Tensor]] = field(default_factory=list)

    def keeps(self, step: int, finite: Iterable[torch.Tensor]) -> None:
        """Record whether what is kept of a step is finite. The tensors are read by :meth:`broken`."""
        self.unread += [(step, samples) for samples in finite if not samples.is_meta]

    def broken(self) -> list[int]:
        """The steps at which something kept was not finite. It reads from the device: ask after a loop."""
        unread, self.unread = self.unread, []
        if not unread or not self.calls or self.calls[-1].step < self.total - 1:  # aborted: the error says more
            return []
        flags = torch.stack([samples.all().to(unread[0][1].device) for _, samples in unread]).tolist()
        steps = sorted({step for (step, _), finite in zip(unread, flags, strict=True) if not finite})
        if steps:
            self.note(f"values that are not finite (NaN or infinite) at step {_ranges(steps)}")
        return steps

    def note(self, text: str) -> None:
        """Tell the reader of the summary something beside the counts."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def sees(self, tensors: Iterable[torch.Tensor]) -> None:
        """Learn from the tensors of a call on which device the loop runs."""
        if self.device is None:
            self.device = next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))

    def holds(self, nbytes: int) -> None:
        """Record the memory that the loop holds at the moment."""
        self.held_bytes = nbytes
        self.history_bytes = max(self.history_bytes, nbytes)

    @contextmanager
    def timed(self) -> Iterator[Callable[[], float] | None]:
        """Time a block. Yields a function that returns its milliseconds afterwards, or None without ``timing``.

        On CUDA it records two events, which are read later, so that timing adds no synchronization.
        """
        if not self.timing:
            yield None
        elif self.device is not None and self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield lambda: _elapsed(begin, end)
            end.record()
        else:
            span = [time.perf_counter()] * 2
            yield lambda: 1e3 * (span[1] - span[0])
            span[1] = time.perf_counter()

    @contextmanager
    def counted(self, record: Call) -> Iterator[None]:
        """Count the FLOP of a block into ``record.flops``, with ``flops=True``."""
        if not self.flops:
            yield
            return
        with counting() as counter:
            yield
        record.flops = (record.flops or 0) + counter.get_total_flops()


def _elapsed(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return begin.elapsed_time(end)


@dataclass(frozen=True)
class BranchSummary:
    """Counts of one guidance branch: ``evaluated + forecast + partial`` = its steps. Evaluated includes fallbacks."""

    evaluated: int
    forecast: int
    partial: int
    fallback: int

    @property
    def steps(self) -> int:
        return self.evaluated + self.forecast + self.partial

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "steps": self.steps}


@dataclass(frozen=True)
class Flops:
    """FLOP of a generation's denoiser calls; a multiplication and its addition count as two.

    Attributes:
        total: of all calls.
        evaluation: of one whole evaluation of all branches.
    """

    total: int
    evaluation: int

    @property
    def evaluations(self) -> float:
        """The total in units of whole evaluations: the NFE if it counted partial evaluations too."""
        return self.total / self.evaluation if self.evaluation else 0.0

    def to_dict(self) -> dict[str, float]:
        return {"total": self.total, "evaluation": self.evaluation, "evaluations": self.evaluations}

    def __str__(self) -> str:
        return f"{self.total / 1e12:.4g} TFLOP, that of {self.evaluations:.2f} evaluations"


@dataclass(frozen=True)
class Summary:
    """What the last generation did.

    Attributes:
        steps: steps at which a denoiser was called. If the step is unknown, a call counts as the next step, unless it
            is another named branch of the same step.
        evaluated: the steps whose first call ran the whole denoiser, fallbacks included.
        nfe: ``len(evaluated)``.
        speedup: ``steps / nfe``, counted in evaluations of the first branch, not in time.
        branches: counts by guidance branch ("0", "1", … in order of the calls, or the pipeline's own name).
        fallbacks: step → reason, for steps whose first call was evaluated because no forecast was possible;
            ``branches`` counts those of the other branches.
        calls: denoiser calls over all branches, evaluated or not.
        history_bytes: peak memory of the kept features; 0 for the cache of another package, whose memory is unknown.
        milliseconds: time spent "evaluating", "forecasting" and "outside" the denoiser, over all loops of the call;
            None without ``timing=True``.
        errors: step → relative error of the forecast; empty without ``audit=True``.
        flops: FLOP of the denoiser's calls; None without ``flops=True``.
        loops: sampling loops in the generation, more than 1 if a pipeline samples in sections. The summary describes
            the last loop.
        stage: name of the denoiser that starts the sampling loop.
        stages: for pipelines with several stages (prior and decoder), a summary of each, in order; the other
            attributes then describe the last stage. Empty for a single stage.
        package: name and version of the package whose cache ran; None for the methods of this library.
        notes: what else happened → how often, such as where a path could not be corrected.
    """

    method: str
    site: str
    steps: int
    evaluated: list[int]
    branches: dict[str, BranchSummary]
    fallbacks: dict[int, str]
    calls: int
    history_bytes: int
    milliseconds: dict[str, float] | None
    errors: dict[int, float]
    loops: int = 1
    flops: Flops | None = None
    package: tuple[str, str] | None = None
    stage: str = ""
    stages: tuple[Summary, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Number of evaluated steps."""
        return len(self.evaluated)

    @property
    def speedup(self) -> float:
        """Steps over evaluated steps."""
        return self.steps / self.nfe if self.nfe else 1.0

    @property
    def evaluated_calls(self) -> int:
        """Calls that ran the whole denoiser, over all branches."""
        return sum(branch.evaluated for branch in self.branches.values())

    @property
    def call_speedup(self) -> float:
        """``calls / evaluated_calls``, over all branches."""
        return self.calls / self.evaluated_calls if self.evaluated_calls else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON-ready values. Steps that are keys become strings."""
        return {
            "method": self.method,
            "site": self.site,
            "steps": self.steps,
            "evaluated": self.evaluated,
            "nfe": self.nfe,
            "speedup": self.speedup,
            "calls": self.calls,
            "evaluated_calls": self.evaluated_calls,
            "call_speedup": self.call_speedup,
            "branches": {name: branch.to_dict() for name, branch in self.branches.items()},
            "fallbacks": {str(step): reason for step, reason in self.fallbacks.items()},
            "history_bytes": None if self.package else self.history_bytes,
            "milliseconds": self.milliseconds,
            "errors": {str(step): error for step, error in self.errors.items()},
            "loops": self.loops,
            "flops": self.flops.to_dict() if self.flops else None,
            "package": dict(zip(("name", "version"), self.package, strict=True)) if self.package else None,
            "stage": self.stage,
            "notes": self.notes,
            "stages": [stage.to_dict() for stage in self.stages],
        }

    def _repr_html_(self) -> str:
        """The summary in a notebook."""
        return summary_html(self)

    def __str__(self) -> str:
        if self.stages:
            texts = [f"{stage.stage}: {stage}" for stage in self.stages]
            if outside := (self.milliseconds or {}).get("outside"):
                texts.append(f"outside the denoisers {outside:.0f} ms")
            return "\n".join(texts)
        lines = [
            f"{self.method} at {self.site}: {self.steps} steps, {self.nfe} evaluated, {self.speedup:.2f}x fewer",
            f"  evaluated  {_ranges(self.evaluated)}",
            f"  {'branch':<10} {'evaluated':>9} {'forecast':>9} {'partial':>8} {'fallback':>9} {'steps':>6}",
        ]
        for name, b in self.branches.items():
            lines.append(f"  {name:<10} {b.evaluated:>9} {b.forecast:>9} {b.partial:>8} {b.fallback:>9} {b.steps:>6}")
        if len(self.branches) > 1:
            lines.append(f"  calls      {self.calls}, {self.evaluated_calls} evaluated, {self.call_speedup:.2f}x fewer")
        lines += [f"  fallback   step {step}: {reason}" for step, reason in self.fallbacks.items()]
        lines += [f"  note       {text}" + (f" ({n} times)" if n > 1 else "") for text, n in self.notes.items()]
        if self.package:
            lines.append(f"  package    {' '.join(self.package)}, {self.calls} denoiser calls")
        else:
            lines.append(f"  history    {self.history_bytes / 2**20:.1f} MiB at peak, {self.calls} denoiser calls")
        if self.milliseconds:
            lines.append("  time       " + ", ".join(f"{k} {v:.0f} ms" for k, v in self.milliseconds.items()))
        if self.flops:
            lines.append(f"  cost       {self.flops}")
        if self.errors:
            worst = max(self.errors, key=lambda step: self.errors[step])
            lines.append(f"  forecast   relative error up to {self.errors[worst]:.3g}, at step {worst}")
        return "\n".join(lines)


def _ranges(steps: list[int]) -> str:
    """``[0, 1, 2, 4]`` → ``0-2, 4``."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def summarize(trace: Trace) -> Summary:
    """Count the calls of a trace."""
    first = [call for call in trace.calls if call.first]
    fallbacks: dict[int, str] = {}
    for call in first:
        if call.action == "fallback":
            fallbacks[call.step] = call.reason
    return Summary(
        method=trace.method,
        site=trace.site,
        steps=len({call.step for call in first}),
        evaluated=sorted({call.step for call in first if call.ran}),
        branches=_by_branch(trace.calls),
        fallbacks=fallbacks,
        calls=len(trace.calls),
        history_bytes=trace.history_bytes,
        milliseconds=_milliseconds(trace),
        errors={call.step: call.error for call in first if call.error is not None},
        loops=trace.earlier_loops + 1,
        flops=_flops(trace),
        package=trace.package,
        stage=trace.stage,
        notes=trace.notes,
    )


def summarize_stages(traces: Sequence[Trace]) -> Summary:
    """The summary of the last stage, with those of all stages where there are several."""
    if len(traces) == 1:
        return summarize(traces[0])
    stages = [summarize(replace(trace, wall_seconds=None)) for trace in traces]  # no stage owns the time outside
    last, wall = stages[-1], traces[-1].wall_seconds
    spent = last.milliseconds
    if spent is not None and wall is not None:
        inside = sum(sum(stage.milliseconds.values()) for stage in stages if stage.milliseconds)
        spent = {**spent, "outside": max(0.0, 1e3 * wall - inside)}
    return replace(last, stages=tuple(stages), milliseconds=spent)


def _flops(trace: Trace) -> Flops | None:
    if not trace.flops:
        return None
    steps: dict[int, int] = {}
    for call in trace.calls:
        steps[call.step] = steps.get(call.step, 0) + (call.flops or 0)
    return Flops(sum(steps.values()), max(steps.values(), default=0))


def _by_branch(calls: list[Call]) -> dict[str, BranchSummary]:
    counts: dict[str, dict[str, int]] = {}
    for call in calls:
        count = counts.setdefault(call.branch, {"evaluated": 0, "forecast": 0, "partial": 0, "fallback": 0})
        count["fallback"] += call.action == "fallback"
        count["evaluated" if call.ran else call.action] += 1
    return {name: BranchSummary(**count) for name, count in counts.items()}


def _milliseconds(trace: Trace) -> dict[str, float] | None:
    if not trace.timing:
        return None
    spent = {"evaluating": 0.0, "forecasting": 0.0}
    for call in trace.calls:
        if call.milliseconds is not None:
            spent["forecasting" if call.action == "forecast" else "evaluating"] += call.milliseconds()
    if trace.wall_seconds is not None:
        spent["outside"] = max(0.0, 1e3 * trace.wall_seconds - sum(spent.values()))
    return spent
