"""A pipeline whose scheduler is given what a calibration wants, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..core.path import Path
from ..core.replay import StepCall, sample_of, unchanged
from ..errors import UnsupportedModelError
from ..handle import Handle
from ..methods import AnyMethod
from ..sites.denoisers import identity
from .samples import Pair, keywords


class DrivenPath(Path):
    """A path that a calibration drives. It decides what is evaluated, and what the scheduler is given."""

    def __init__(self) -> None:
        super().__init__(gain=0.0)
        self.cleared_at: set[int] = set()

    def evaluates(self, step: int) -> bool:
        """Whether the denoiser is called at a step."""
        raise NotImplementedError

    def clear(self) -> None:
        """Note that the denoisers were called otherwise than before; nothing is forgotten."""
        self.cleared_at.add(len(self.steps))


class ScheduledPath(DrivenPath):
    """Follows a schedule, and evaluates no output that is known already.

    Args:
        schedule: the evaluated steps.
        total: number of steps T.
    """

    def __init__(self, schedule: Sequence[int], total: int) -> None:
        super().__init__()
        self.schedule, self._total = frozenset(schedule), total
        self.final: torch.Tensor | None = None

    def knows(self, step: int) -> bool:
        """Whether the output of a step of the schedule is known, so that :meth:`observe` needs none."""
        raise NotImplementedError

    def observe(self, step: int, call: StepCall) -> None:
        """Take in the output of a step of the schedule."""
        raise NotImplementedError

    def given(self, step: int, call: StepCall) -> torch.Tensor:
        """What the scheduler is given, (B, …)."""
        raise NotImplementedError

    def evaluates(self, step: int) -> bool:
        # The first step is always evaluated: its output stands in for that of the denoiser at skipped ones.
        return step in self.schedule and (step == 0 or not self.knows(step))

    def evaluated(self, step: int, call: StepCall) -> torch.Tensor:
        return self._taken(step, call)

    def skipped(self, step: int, call: StepCall) -> torch.Tensor:
        return self._taken(step, call)

    def _taken(self, step: int, call: StepCall) -> torch.Tensor:
        if step in self.schedule:
            self.observe(step, call)
        self.steps.append(step)
        output = self.given(step, call)
        if step == self._total - 1:
            self.final = preview(call, output)
        return output.to(call.output.dtype)


@dataclass(frozen=True, kw_only=True)
class Driven(AnyMethod):
    """Lets a path drive the next sampling loop at the scheduler.

    Attributes:
        paths: the path of the next loop, if there is one.
    """

    site: str = "sampler"
    paths: list[DrivenPath] = field(default_factory=list, compare=False)

    sites: ClassVar[tuple[str, ...]] = ("sampler",)
    needs_conditions: ClassVar[bool] = True

    def path(self) -> Path:
        if not self.paths or self.paths[-1].steps:
            raise UnsupportedModelError(
                "the pipeline runs several sampling loops in one call, and a plan is for one: tune the pipelines "
                "inside it one by one"
            )
        return self.paths[-1]

    def evaluates(self, step: int, total: int) -> bool:
        return self.paths[-1].evaluates(step)

    def untouched(self, total: int) -> bool:
        return False


class Session:
    """Calls of a pipeline on which :class:`Driven` is enabled.

    Args:
        pipe: the pipeline.
        handle: from ``enable_method(pipe, Driven())``.
        call: arguments of every call.
    """

    def __init__(self, pipe: Any, handle: Handle, call: Mapping[str, Any]) -> None:
        self.pipe, self.handle, self.call = pipe, handle, call

    def run(self, pairs: Sequence[Pair], path: DrivenPath) -> None:
        """Sample the pairs together, driven by a path.

        Raises:
            UnsupportedModelError: some steps could not be forecast as the path wanted.
        """
        method = self.handle.method
        assert isinstance(method, Driven)
        method.paths[:] = [path]
        self.pipe(**keywords(self.pipe, pairs, self.call))
        total = len(path.steps)
        if reasons := {call.reason for trace in self.handle.traces for call in trace.calls if call.reason}:
            raise _refusal(", ".join(sorted(reasons)))
        if path.cleared_at - {0, total}:
            raise _refusal("the calls of its denoisers change during the loop, as where guidance stops midway")


def preview(call: StepCall, output: torch.Tensor) -> torch.Tensor:
    """The sample to which the scheduler would step with an output, in float32; nothing changes."""
    with unchanged(call.scheduler):
        return sample_of(call.proceed_with(output.float(), call.sample.float())).float()


def _refusal(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"no plan can be fitted to this pipeline: {reason}. Use spectrum without a plan")


def kind_of(handle: Handle) -> str:
    """The kind of the denoisers, as a plan names what it was made for."""
    return " + ".join(dict.fromkeys(identity(model) for model in handle.models))
