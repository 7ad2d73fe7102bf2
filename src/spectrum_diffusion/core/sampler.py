"""One sampling loop whose scheduler is given forecasts: the denoiser is skipped whole, once for all its branches.

Guidance is linear in the denoiser's outputs, so the forecast of the guided output equals the guided forecasts of the
branches, and one history of it suffices. What the pipeline computes from the denoiser's output on a skipped step is
thrown away, so the last real output stands in for it. The scheduler's own code takes every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from ..errors import UnsupportedModelError
from .branches import Conditioning
from .calls import Arguments
from .clock import Clock
from .corrector import Corrector
from .history import memory_of
from .replay import StepCall
from .run import UNKNOWN, Loop, OnStep, relative_error
from .summary import Call, Trace

if TYPE_CHECKING:
    from ..methods.base import AnyMethod

GUIDED = "guided"
"""The one row of the summary: what the scheduler is given is the guided output."""
OTHER_CALLS = "the denoisers are called otherwise, or with other conditioning, than at the step before"


class SamplerRun(Loop):
    """One sampling loop at the sampler site.

    Args:
        method: which steps are evaluated, and how a path is forecast and corrected.
        clock: where the step of a call is read.
        trace: where the steps are noted.
        corrector: takes the scheduler's steps, and keeps the evaluated outputs.
        on_step: called after each step with (step, branch, action, reason).
        audit: evaluate every step, but sample as if the method had skipped, and note the forecasts' errors.
    """

    def __init__(
        self,
        method: AnyMethod,
        clock: Clock,
        trace: Trace,
        corrector: Corrector,
        *,
        on_step: OnStep | None = None,
        audit: bool = False,
    ) -> None:
        super().__init__(method, clock, trace, on_step, audit)
        self.corrector, self._path = corrector, corrector.path
        self._record: Call | None = None  # of the step under way
        self._stepped = True  # whether the scheduler has taken it
        self._calls = 0  # of denoisers, in the step under way
        self._outputs: dict[Any, Any] = {}  # of the last evaluated step, by denoiser, place in the step and shapes
        self._computed: dict[Any, Any] = {}  # likewise, of the step under way
        self._conditioning: dict[Any, Conditioning] = {}  # of the last call of each kind
        self._differs = False  # whether the step under way is made of other calls than the last evaluated one

    def call(self, denoiser: Any, call: Arguments) -> Any:
        """Evaluate one call of the denoiser, or answer it with a stand-in."""
        step = self.clock.locate(call)
        if self._is_over(step):
            return call.proceed(*call.args, **call.kwargs)
        record = self._current(step, call)
        key = (denoiser, self._calls, frozenset(call.shapes.items()))
        conditioning = self._conditioning.setdefault(key, Conditioning())
        is_known = key in self._outputs and conditioning.matches(call)
        conditioning.observe(call)
        if not is_known:
            self._differs = True
            if record.action == "forecast" and not self._calls:
                record.action, record.reason = "fallback", OTHER_CALLS
        self._calls += 1
        if record.action == "forecast" and not self.audit and is_known:
            return self._outputs[key]
        self.trace.sees(call.tensors.values())
        with self.trace.timed() as milliseconds, self.trace.counted(record):
            output = self._evaluated(denoiser, call, record.step)
        record.add_milliseconds(milliseconds)
        self._computed[key] = output
        return output

    def step(self, call: StepCall) -> Any:
        """Answer a step of the scheduler: with the evaluated output on a corrected path, or with the forecast.

        Raises:
            UnsupportedModelError: the pipeline's schedulers step otherwise than once for each evaluation.
        """
        if self._ended:
            return call.proceed()
        record = self._record
        if call.scheduler is not self.corrector.scheduler:
            raise refusal("several schedulers take steps in one sampling loop")
        if record is None or self._stepped:
            raise refusal("the scheduler takes several steps for one evaluation of the denoiser")
        self._stepped = True
        with self.trace.timed() as milliseconds:
            result = self._skip(record, call) if record.action == "forecast" else self._evaluate(record, call)
        if self._controller is not None and record.ran:
            self._controller.end(record.step, self.clock.total, self.method.nodes, self.trace.note)
        record.add_milliseconds(milliseconds)
        self._note(record)
        return result

    def close(self) -> None:
        """Let go of every tensor; the trace stays."""
        self.corrector.clear()
        self._outputs, self._computed = {}, {}
        self._conditioning.clear()
        self.trace.holds(0)

    def _evaluated(self, denoiser: Any, call: Arguments, step: int) -> Any:
        """The output of the denoiser; through the site, which refuses what a later step must not skip."""
        if self.method.needs_feature(step, self.clock.total):
            return denoiser.site(self.method).evaluate(call)[0]
        return call.proceed(*call.args, **call.kwargs)

    def _is_over(self, step: int | None) -> bool:
        """Whether a call comes after the loop's last step, for example to fill a cache for the next loop."""
        return self._ended and (step is None or step >= max(self.clock.total - 1, 1))

    def _current(self, step: int | None, call: Arguments) -> Call:
        """The record of the step under way, which its first call begins."""
        before = self._record
        if before is not None and not self._stepped:
            if step in (None, before.step):
                return before
            raise refusal("the scheduler takes no step after an evaluation of the denoiser")
        if before is not None and step is not None and step <= before.step:
            self._begin_again(step, before)
        self._record = self._begin(step, call)
        self._stepped = self._differs = False
        self._calls, self._computed = 0, {}
        return self._record

    def _begin_again(self, step: int, before: Call) -> None:
        """Begin another loop over the same timesteps."""
        if step == before.step and before.reason != UNKNOWN and self.clock.total > 1:
            raise refusal("the scheduler takes several steps at one timestep")
        self.close()
        self._restart()
        self._record = None

    def _begin(self, step: int | None, call: Arguments) -> Call:
        if step is None:
            return Call(self._record.step + 1 if self._record else 0, GUIDED, "fallback", UNKNOWN)
        self._pace(step, call)
        if self._steps.evaluates(step, self.clock.total):
            return Call(step, GUIDED, "evaluated")
        if not len(self._path):
            return Call(step, GUIDED, "fallback", OTHER_CALLS if self._outputs else "history too short (0 of 1)")
        return Call(step, GUIDED, "forecast")

    def _skip(self, record: Call, call: StepCall) -> Any:
        output = self._path.skipped(record.step, call)
        if self.audit:
            record.error = relative_error((output,), (call.output,))
        result = self.corrector.skipped(call, output)
        if self._calls_changed:
            self.corrector.clear()
        return result

    def _evaluate(self, record: Call, call: StepCall) -> Any:
        if self._calls_changed:
            self.corrector.clear()
        self._outputs, self._computed = self._computed, {}
        if record.reason == UNKNOWN:  # an output without a time can't be interpolated
            self.corrector.clear()
            return call.proceed()
        if self._controller is not None and len(self._path):
            self._controller.compare(self._path.line(record.step), (call.output,))
        return self.corrector.evaluated(record.step, replace(call, computed=tuple(self._outputs.values())))

    @property
    def _calls_changed(self) -> bool:
        """Whether the step was made of other calls than the last evaluated one, as where guidance changes."""
        return self._differs or self._calls != len(self._outputs)

    @property
    def _stand_ins(self) -> int:
        """Memory of the outputs that stand in for those of skipped steps, in bytes."""
        leaves = tree_leaves([self._outputs, self._computed])
        return sum(memory_of(leaf for leaf in leaves if isinstance(leaf, torch.Tensor)).values())

    def _note(self, record: Call) -> None:
        self.trace.calls.append(record)
        self.trace.total = self.clock.total
        self.trace.holds(self.corrector.nbytes + self._stand_ins)
        if record.step >= self.clock.total - 1:
            self._ended = True
            self.close()  # before the decoder runs, which may need the memory
        if self.on_step is not None:
            self.on_step(record.step, record.branch, record.action, record.reason)


def refusal(reason: str, pipeline: str = "this pipeline") -> UnsupportedModelError:
    """The error of a pipeline for which nothing can be forecast at the scheduler."""
    return UnsupportedModelError(
        f'site="sampler" does not work with {pipeline}: {reason}. Use site="output", which forecasts each call of the '
        "denoiser"
    )
