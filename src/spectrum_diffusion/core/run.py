"""One sampling loop: finds step and branch of each call, evaluates or forecasts it, and records it in the trace.

Every generation creates a new run and drops it when it ends or fails. A run knows neither diffusers nor how a model is
skipped: a clock tells the step, and a site evaluates or skips the call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidOptionError, SpectrumError, UnsupportedModelError
from .branches import Branch, Branches
from .calls import Arguments
from .clock import Clock, ManualClock, noise_of, time_axis
from .history import Feature
from .schedule import check_integer
from .site import Site
from .summary import Action, Call, Trace

if TYPE_CHECKING:
    from ..methods.base import AnyMethod
    from .controller import Controller
    from .corrector import Corrector
    from .replay import StepCall


OnStep = Callable[[int, str, Action, str], None]

UNKNOWN = "step unknown"


class Loop:
    """One sampling loop under a method.

    Args:
        method: the method as it was asked for; :attr:`method` is fitted to the loop.
        clock: tells the step of a call.
        trace: records the calls.
        on_step: called after each call or step with (step, branch, action, reason).
        audit: evaluate skipped steps too, for the errors of the forecasts, but sample with the forecasts.
    """

    def __init__(self, method: AnyMethod, clock: Clock, trace: Trace, on_step: OnStep | None, audit: bool) -> None:
        self.method, self.clock, self.trace = method, clock, trace
        self.on_step, self.audit = on_step, audit
        self.context: str | None = None  # name of the guidance branch, if the pipeline tells it
        self._asked, self._paced = method, False
        self._controller: Controller | None = None  # chooses the evaluated steps, if no schedule does
        self._ended = False  # whether the scheduler took the loop's last step

    def _pace(self, step: int, call: Arguments) -> None:
        """Fit the method to the run: to its noise levels, which some schedulers do not know yet at step 0."""
        if not self._paced:
            self.method, self._paced = self._asked.paced(noise_of(self.clock, call)), step > 0
        if self._controller is None:
            self._controller = self.method.controller(self.clock.total)

    @property
    def _steps(self) -> Controller | AnyMethod:
        """What says which steps are evaluated, and which features are needed."""
        return self._controller or self.method

    def _restart(self) -> None:
        """Begin another loop over the same timesteps."""
        self.trace.calls.clear()
        self.trace.earlier_loops += 1
        self._ended, self._controller = False, None


class Run(Loop):
    """One sampling loop under a method: evaluates or skips each call of a denoiser, and keeps its features.

    Args:
        method: schedule, forecaster and site.
        clock: tells the step of a call.
        trace: records the calls.
        on_step: called after each denoiser call with (step, branch, action, reason).
        audit: evaluate skipped steps too, for the errors of the forecasts, but sample with the forecasts.
        corrector: takes the scheduler's steps and corrects the path, if the method wants that.
    """

    def __init__(
        self,
        method: AnyMethod,
        clock: Clock,
        trace: Trace,
        *,
        corrector: Corrector | None = None,
        on_step: OnStep | None = None,
        audit: bool = False,
    ) -> None:
        super().__init__(method, clock, trace, on_step, audit)
        self._branches: dict[Hashable, Branches] = {}
        self._step, self._known, self._calls_in_step = -1, -1, 0
        self._all_ran = False  # whether every call of the step under way ran the whole denoiser
        self._named: set[str | None] = set()  # names of the branches that were called at this step
        self._times: Sequence[float] | None = None
        self._whole: dict[tuple[Site, frozenset[Any]], int] = {}
        self.corrector = corrector
        self._since_step: list[tuple[Hashable, Call]] = []  # calls since the scheduler's last step
        self._guided_by: set[tuple[Hashable, str]] = set()  # branches at the step before

    def call(self, denoiser: Any, call: Arguments) -> Any:
        """Evaluate or skip one call of a denoiser, a :class:`sites.denoiser.Denoiser`; its output."""
        site: Site = denoiser.site(self.method)
        located = self.clock.locate(call)
        if self._is_over(located):
            self._known = self.clock.total
            return call.proceed(*call.args, **call.kwargs)
        step, known = self._enter(located), located is not None
        self._pace(step, call)
        self._axis(step)  # refuses before anything runs
        branch, unclear = self._branches.setdefault(denoiser, Branches(self._new_branch)).of(self.context, step, call)
        obstacle = unclear if known else UNKNOWN
        action, reason = self._plan(branch, step, obstacle)
        self.trace.sees(call.tensors.values())
        record = Call(step, branch.label, action, reason, first=self._calls_in_step == 1)
        with self.trace.timed() as record.milliseconds, self.trace.counted(record):
            if self.method.observes:
                output = self._watch(site, call, record)
            elif obstacle:
                output = call.proceed(*call.args, **call.kwargs)
            elif branch.decider is not None:
                output = self._decide(branch, site, call, record)
            elif action == self.method.skip:
                output = self._skip(branch, site, call, record)
            else:
                output = self._evaluate(branch, site, call, record)
        branch.observe(call, step)
        self._note(record, branch)
        if self.corrector is not None:
            self._since_step.append((denoiser, record))
        return output

    def step(self, call: StepCall) -> Any:
        """Take a step of the scheduler, on a corrected path where there is a corrector."""
        calls, self._since_step = self._since_step, []
        if self.corrector is None or call.scheduler is not self.corrector.scheduler:
            return call.proceed()
        if not calls or any(record.reason == UNKNOWN for _, record in calls):
            self.corrector.stop("the scheduler does not take one step for each evaluation of the denoiser")
            return call.proceed()
        branches = {(denoiser, record.branch) for denoiser, record in calls}
        if branches != self._guided_by:
            self.corrector.clear()  # guidance has changed, and outputs can't be interpolated over that
            self._guided_by = branches
        step = calls[0][1].step
        if all(record.ran for _, record in calls):
            result = self.corrector.evaluated(step, call)
        else:
            result = self.corrector.skipped(call, call.output)
        self.trace.holds(self._held)
        if step >= self.clock.total - 1:
            self._ended = True
            self.corrector.clear()
        return result

    def close(self) -> None:
        """Free every feature, even if a traceback still holds the run. The trace stays."""
        if self.corrector is not None:
            self.corrector.clear()
        for branch in self._every_branch:
            branch.release()
        self._branches.clear()
        self.trace.holds(0)

    def _is_over(self, step: int | None) -> bool:
        """Whether a call comes after the loop's last step, for example to fill a cache for the next loop."""
        return self._ended if step is None else step >= self.clock.total

    def _enter(self, step: int | None) -> int:
        """Enter the step of a call, which is counted if the clock cannot tell it."""
        if step is None:
            step = self._count(self._step)
        else:
            if step < self._known:  # the same timesteps again: another loop
                self._begin_again()
            self._known = step
        if step != self._step:
            self._turn()
            self._step, self._calls_in_step = step, 0
            self._named.clear()
        self._calls_in_step += 1
        self._named.add(self.context)
        return step

    def _turn(self) -> None:
        """Before the first call of a step, let the controller learn from the step before, if it was evaluated."""
        if self._controller is not None and self._all_ran:
            self._controller.end(self._step, self.clock.total, self.method.nodes, self.trace.note)
        self._all_ran = True

    def _count(self, step: int) -> int:
        """The step of a call that the clock cannot tell: the next one, unless another branch of this step is named."""
        is_other_branch = self.context is not None and self._named and self.context not in self._named
        return step if is_other_branch else step + 1

    def _begin_again(self) -> None:
        self.close()
        self._restart()
        self._step = self._known = -1
        self._since_step.clear()

    def _new_branch(self, label: str, call: Arguments, name: str | None) -> Branch:
        decider = self.method.decider(self.clock.total)
        guided = self.corrector.path if self.corrector is not None else None
        history = self.method.history(guided, call.rows)
        return Branch(label, history, call.shapes, name, decider)

    @property
    def _every_branch(self) -> list[Branch]:
        return [branch for branches in self._branches.values() for branch in branches.all]

    @property
    def _held(self) -> int:
        held = sum(branch.nbytes for branch in self._every_branch)
        return held + (self.corrector.nbytes if self.corrector is not None else 0)

    def _plan(self, branch: Branch, step: int, obstacle: str) -> tuple[Action, str]:
        """The action and its reason, before the call. An adaptive method may still evaluate."""
        if obstacle:
            return "fallback", obstacle
        if self._steps.evaluates(step, self.clock.total):
            return "evaluated", ""
        if (have := len(branch.history)) < (need := self.method.min_points):
            return "fallback", branch.restarted or f"history too short ({have} of {need})"
        return self.method.skip, ""

    def _evaluate(self, branch: Branch, site: Site, call: Arguments, record: Call) -> Any:
        if not self._steps.needs_feature(record.step, self.clock.total):
            return call.proceed(*call.args, **call.kwargs)
        if self._controller is None:  # which compares the feature with the forecast of all that is kept
            branch.history.make_room()
        output, feature, branch.structure = site.evaluate(call)
        self._keep(branch, site, feature, record)
        return output

    def _watch(self, site: Site, call: Arguments, record: Call) -> Any:
        """Call the denoiser under another package's cache, and record how much of it ran.

        A call is whole if no earlier call of its shapes ran more. The first call of a loop is never cached.
        """
        try:
            output, _, work = site.evaluate(call)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            raise UnsupportedModelError(
                f"the denoiser failed under {self.trace.method}: {type(error).__name__}: {error}. If it runs without "
                "this cache, the two are incompatible: use another method, such as spectrum"
            ) from error
        kind = (site, frozenset(call.shapes.items()))
        whole = self._whole[kind] = max(work, self._whole.get(kind, 0))
        record.action, record.reason = ("evaluated" if work == whole else "partial" if work else "forecast"), ""
        return output

    def _keep(self, branch: Branch, site: Site, feature: Feature, record: Call) -> None:
        if not feature:
            branch.restart(f"{site.name} not reached")
        elif branch.history.fits(feature):
            if self._controller is not None and len(branch.history):
                self._controller.compare(self._forecast(branch, record), feature)
            branch.history.append(record.step, feature, copied=site.copies)
        else:
            branch.restart("shape changed").history.append(record.step, feature, copied=site.copies)
        if feature:
            self.trace.keeps(record.step, branch.history.finite)

    def _skip(self, branch: Branch, site: Site, call: Arguments, record: Call) -> Any:
        intact = call.copied() if self.audit else call
        feature = self._forecast(branch, record)
        output = site.forecast(call, feature, branch.structure)
        self._audit(site, intact, feature, record)
        return output

    def _decide(self, branch: Branch, site: Site, call: Arguments, record: Call) -> Any:
        """Let the branch's decider evaluate or skip the call, from the signal of the site."""
        decider, may_skip = branch.decider, record.action == self.method.skip
        assert decider is not None
        signals: list[torch.Tensor] = []
        forecast: list[Iterable[torch.Tensor]] = []

        def choose(signal: torch.Tensor) -> Iterable[torch.Tensor] | None:
            signals.append(signal)
            if not decider.skips(record.step, signal, may_skip):
                return None
            forecast.append(self._forecast(branch, record))
            return forecast[0]

        intact = call.copied() if self.audit and may_skip else call
        output, feature, branch.structure = site.decide(call, choose, branch.structure)
        if feature is None:
            self._audit(site, intact, forecast[0], record)
            return output
        if may_skip:
            record.action = "evaluated"
        self._keep(branch, site, feature, record)
        if signals:
            decider.learn(signals[0], feature, call.computed(output))
        return output

    def _forecast(self, branch: Branch, record: Call) -> Iterable[torch.Tensor]:
        """The feature at the step: tensor by tensor as the site asks for them, so that no second set is held."""
        if self.method.in_place:
            return branch.history.features[-1]
        forecast = self.method.forecast(branch.history, record.step, self._axis(record.step))
        return tuple(forecast) if self.audit else forecast

    def _audit(self, site: Site, call: Arguments, feature: Iterable[torch.Tensor], record: Call) -> None:
        """With ``audit``, evaluate the skipped step too and record the relative error of the forecast."""
        if self.audit:
            record.error = relative_error(tuple(feature), site.evaluate(call)[1])

    def _axis(self, step: int) -> Sequence[float]:
        """The time of each step, in steps; see :func:`time_axis`."""
        if self._times is not None:
            return self._times
        kind = self.method.axis
        times = range(self.clock.total) if kind == "index" else time_axis(kind, self.clock)
        if step > 0:  # at step 0 some schedulers do not know yet where the loop begins
            self._times = times
        return times

    def _note(self, record: Call, branch: Branch) -> None:
        self.trace.calls.append(record)
        self._all_ran &= record.ran
        self.trace.total = self.clock.total
        self.trace.holds(self._held)
        if record.step >= self.clock.total - 1:
            # Now, because the decoder may need the memory. A branch or expert that stopped gets no further call.
            for other in self._every_branch:
                if other is branch or other.step < record.step - 1:
                    other.release()
        if self.on_step is not None:
            self.on_step(record.step, record.branch, record.action, record.reason)


class ManualRun:
    """The run of the user's own sampling loop over a bare denoiser, from :meth:`Handle.run`.

    >>> with handle.run(total_steps=50) as run:      # doctest: +SKIP
    ...     for i, t in enumerate(timesteps):
    ...         run.step(i)
    ...         noise = model(latents, t)
    """

    def __init__(self, run: Run, clock: ManualClock) -> None:
        self._run, self._clock = run, clock

    def step(self, index: int) -> None:
        """Announce that the next calls of the denoiser belong to step ``index``: 0 … total_steps−1, never lower."""
        index = check_integer("step", index, least=0, most=self._clock.total - 1)
        if self._clock.now is not None and index < self._clock.now:
            raise InvalidOptionError(
                f"step({index}) goes back from step {self._clock.now}: start a new handle.run(...) for another image"
            )
        self._clock.now = index

    def branch(self, name: str) -> AbstractContextManager[Any]:
        """Name the guidance branch of the next calls, e.g. "cond". Unnamed branches are told apart by their calls.

        Returns:
            A context manager, for ``with run.branch("cond"):``, after which the calls have the name they had before.
        """
        before, self._run.context = self._run.context, name
        block = ExitStack()
        block.callback(setattr, self._run, "context", before)
        return block

    def call(self, denoiser: Any, call: Arguments) -> Any:
        """Answer one call of a denoiser."""
        if self._clock.now is None:
            raise SpectrumError("the denoiser was called before run.step(i): announce the step before each call")
        return self._run.call(denoiser, call)


def relative_error(forecast: Feature, true: Feature) -> float:
    """``‖ĥ − h‖₂ / ‖h‖₂`` over all floating tensors of a feature, in float32. Integer tensors do not count."""
    pairs = [(f.float(), t.float()) for f, t in zip(forecast, true, strict=True) if t.is_floating_point()]
    difference = sum(torch.sum((f - t) ** 2) for f, t in pairs)
    norm = sum(torch.sum(t**2) for _, t in pairs)
    return float(torch.sqrt(torch.as_tensor(difference) / torch.as_tensor(norm).clamp_min(1e-30)))
