"""A pipeline's call as a generation.

While a pipeline is enabled, its class is a thin subclass that opens a generation around ``__call__``. So its start,
end, failure and thread are known exactly.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from .conditions import Conditions
from .core.calls import Arguments
from .core.replay import StepCall
from .core.run import UNKNOWN, Run
from .core.sampler import SamplerRun
from .core.subclass import thin_subclass
from .core.summary import Call, Trace
from .core.words import SKIPPED_NOTHING
from .errors import ConflictError, InvalidOptionError
from .methods import AnyMethod, name_of
from .noise import NoiseWatch
from .scheduler_clock import SchedulerClock, Schedulers
from .scheduler_steps import intercept_steps, refuse_copies, schedulers_in
from .sites import denoisers, site_class
from .sites.denoiser import Denoiser
from .sites.imprint import Imprint
from .solvers import sampling_with

if TYPE_CHECKING:
    from .handle import Handle


class Generation:
    """One call of an enabled pipeline: answers its denoisers' calls, with a run for each sampling loop in it.

    Args:
        handle: the pipeline's handle.
        pipe: the pipeline, with the scheduler that it samples with.
        arguments: what the pipeline is called with, by name.
        stack: undoes what the generation changes.
    """

    def __init__(self, handle: Handle, pipe: Any, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        self._handle, self._pipe, self._arguments, self._stack = handle, pipe, arguments, stack
        self._answered: list[Any] = []  # schedulers
        self._schedulers = Schedulers(pipe)
        self._noise: NoiseWatch | None = NoiseWatch(arguments.values())
        self._clock: SchedulerClock | None = None
        self._run: Run | SamplerRun | None = None
        self._imprints: dict[str, Imprint] = {}  # of the denoisers at the first call of the loop under way
        self._loops, self._outside = 0, 0
        self.context: str | None = None

    def call(self, denoiser: Denoiser, call: Arguments) -> Any:
        if (clock := self._schedulers.new_loop(call, denoiser.model)) is not None:
            clock.locate(call)  # tells some schedulers where among the noise levels the loop begins
            self._handle.begins(lambda: Conditions.of(self._pipe, self._arguments, clock, call))
            self._begin(clock, denoiser.name)
        if self._run is None:  # before the first loop, calls are not steps: they encode a condition
            self._outside += 1
            return call.proceed(*call.args, **call.kwargs)
        self._warn_if_stochastic()
        self._check_intact(denoiser)
        try:
            self._run.context = self.context
            output = self._run.call(denoiser, call)
        except InvalidOptionError as error:
            raise self._explained(error) from None
        if self._noise is not None:
            self._noise.mark(call.first.device)
        return output

    def _check_intact(self, denoiser: Denoiser) -> None:
        """Raise if modules are exchanged within a loop of a method that keeps outputs of modules.

        Raises:
            ConflictError: what was kept of the modules does not fit those of now.
        """
        method, model = self._handle.method, denoiser.model
        if not site_class(method.site).inside_blocks or model is None:
            return
        if denoiser.name not in self._imprints:  # a pipeline may install processors before its loop
            self._imprints[denoiser.name] = Imprint(model)
        elif not self._imprints[denoiser.name].matches(model):
            raise ConflictError(
                f"modules of {denoiser.name} were exchanged during a generation, and {name_of(method)} keeps their "
                "outputs: change adapters, layers and quantization between two calls"
            )

    def step(self, call: StepCall) -> Any:
        """Answer a step of a scheduler: on a corrected path, or with a forecast."""
        answer = self._run.step if self._run is not None else StepCall.proceed
        with self._noise.stepping() if self._noise is not None else nullcontext():
            return answer(call)

    def answer_steps(self, scheduler: Any) -> None:
        """Answer the steps of a scheduler from now on."""
        if any(scheduler is answered for answered in self._answered):
            return
        self._answered.append(scheduler)
        when_copied = refuse_copies if self._handle.at_scheduler else None
        self._stack.enter_context(intercept_steps(scheduler, self.step, when_copied))

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
        if self._outside and self._run is None:
            self._warn_if_no_loop()
            return
        for trace in self._handle._traces.values():
            self._handle._warn_if_broken(trace)
            self._warn_if_untouched(trace)

    def _begin(self, clock: SchedulerClock, stage: str) -> None:
        if self._run is not None:
            self._run.close()
        if self._noise is not None:
            self._noise.forget()
        self.answer_steps(clock.scheduler)  # if the pipeline made it in this call
        self._clock, self._run = clock, self._handle._new_run(clock, stage, clock.scheduler)
        self._imprints.clear()
        self._loops += 1

    def _explained(self, error: InvalidOptionError) -> InvalidOptionError:
        """The refusal of a later loop, whose number of steps was not known before."""
        if self._loops < 2 or self._clock is None:
            return error
        return InvalidOptionError(
            f"{error}. This is sampling loop {self._loops} of the call, with {self._clock.total} steps; the loops "
            "before it have run. Pass options that suit every loop, or enable the stages one by one"
        )

    def _warn_if_stochastic(self) -> None:
        if self._noise is None or self._clock is None or not self._noise.drawn():
            return
        by_scheduler, self._noise = self._noise.by_scheduler, None
        scheduler = self._clock.scheduler_name
        if by_scheduler is False:  # a corrector sees for itself whether the latents were changed
            self._handle._warn_once(
                f"{type(self._pipe).__name__} draws random numbers between the steps of its scheduler ({scheduler}): "
                "where they become noise in what is sampled, no forecast can predict it. Noise on frames or images "
                "that are given is not sampled"
            )
            return
        if self._run is not None and self._run.corrector is not None:
            self._run.corrector.stop("noise is added at each step")
        self._handle._warn_once(
            f"noise is added at each step (scheduler: {scheduler}), which no forecast can "
            "predict: expect lower quality than with a deterministic scheduler at the same number of evaluations"
        )

    def _warn_if_no_loop(self) -> None:
        self._handle._warn_once(
            f"{type(self._pipe).__name__} called its denoiser {self._outside} times without giving its scheduler new "
            "timesteps, so no step is known and nothing was skipped: use handle.run(total_steps=T) around your own "
            "loop"
        )
        method = self._handle.method
        calls = [Call(step, "0", "fallback", "no timesteps were set") for step in range(self._outside)]
        self._handle._traces[""] = Trace(name_of(method), method.site, calls=calls, total=self._outside)

    def _warn_if_untouched(self, trace: Trace) -> None:
        method = self._handle.method
        reasons = Counter(call.reason for call in trace.calls if call.action == "fallback")
        if not trace.calls or any(not call.ran for call in trace.calls):
            return
        if method.untouched(trace.total):
            self._handle._warn_once(
                f"a run of {trace.total} steps is evaluated whole: there is nothing to skip and the result is "
                "untouched. Few-step models gain nothing; with other models, use more steps, a speedup or a smaller "
                "warmup"
            )
        elif method.observes:
            self._handle._warn_once(
                f"{name_of(method)} skipped nothing: it knows nothing to cache in this model, or its options never "
                f"allow it within {trace.total} steps"
            )
        elif method.decides_while_running and not reasons:
            self._handle._warn_once(
                f"{name_of(method)} {SKIPPED_NOTHING}: its threshold or tolerance allows no skipping within "
                f"{trace.total} steps. Raise it, or use more steps"
            )
        elif reasons:
            reason, count = reasons.most_common(1)[0]
            remedy = "disable(…) it, or use handle.run(total_steps=T) in your own loop" if reason == UNKNOWN else ""
            self._handle._warn_once(
                f"nothing could be skipped, so the result is untouched: {reason} at {count} of the {len(trace.calls)} "
                f"calls of {trace.stage} in {type(self._pipe).__name__}: {remedy or 'use more steps'}"
            )

    @contextmanager
    def naming_branches(self, model: nn.Module) -> Iterator[None]:
        """Read the name of the guidance branch that the pipeline passes to ``model.cache_context(name)``."""
        original = getattr(model, "cache_context", None)
        if original is None or "cache_context" in model.__dict__:
            yield
            return

        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            previous, self.context = self.context, name
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self.context = previous

        model.__dict__["cache_context"] = cache_context
        try:
            yield
        finally:
            del model.__dict__["cache_context"]


def enabled_class(cls: type, handle: Handle) -> type:
    """A subclass of a pipeline's class, of the same name, whose call is a generation of ``handle``."""

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(cls.__call__, self)
        # Another instance of this class is a plain copy of the enabled pipeline. A pipeline that calls itself
        # continues its generation.
        if handle.target is not self or handle._thread == threading.get_ident():
            return call(*args, **kwargs)
        kwargs = _with_sampler_steps(handle.method, cls.__call__, (self, *args), kwargs)
        with _generation(handle, self, _by_name(cls.__call__, (self, *args), kwargs)):
            return call(*args, **kwargs)

    return thin_subclass(cls, {"__call__": __call__, "_spectrum_handle": handle, "_spectrum_original": cls})


@contextmanager
def _generation(handle: Handle, pipe: Any, arguments: Mapping[str, Any]) -> Iterator[None]:
    with handle._generating(), sampling_with(pipe, handle.method.solver), ExitStack() as stack:
        handle._traces = {}
        generation = Generation(handle, pipe, arguments, stack)
        stack.callback(generation.close)
        for denoiser in handle.denoisers:
            stack.enter_context(denoiser.serving(generation))
            assert denoiser.model is not None
            stack.enter_context(generation.naming_branches(denoisers.unwrap(denoiser.model)))
        for scheduler in schedulers_in(pipe):
            generation.answer_steps(scheduler)
        yield


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with defaults; a wrapper's call may take them as **kwargs."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:  # which the call itself is going to tell
        return dict(kwargs)
    bound.apply_defaults()
    return {**bound.arguments, **kwargs}


OVERRIDES = ("sigmas", "timesteps", "prior_timesteps", "decoder_timesteps")
"""Arguments of pipelines that take the place of a number of steps."""


def _with_sampler_steps(
    method: AnyMethod, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's keywords with the numbers of steps, one for each stage, that the method wants of the sampler."""
    if not method.sets_steps:
        return kwargs
    by_position = inspect.signature(function).bind(*args, **kwargs).arguments.keys() - kwargs.keys()
    arguments = _by_name(function, args, kwargs)
    for override in OVERRIDES:
        if arguments.get(override) is not None:
            raise InvalidOptionError(
                f"{name_of(method)} sets num_inference_steps, which {override}=… would override: leave {override} out"
            )
    asked = {name: steps for name, steps in arguments.items() if name.endswith("num_inference_steps")}
    if not any(isinstance(steps, int) for steps in asked.values()):
        raise InvalidOptionError(
            f"{name_of(method)} sets the number of steps, and this call has none (num_inference_steps): pass one, or "
            "use another method"
        )
    wanted = {name: method.sampler_steps(steps) for name, steps in asked.items() if isinstance(steps, int)}
    changed = {name: steps for name, steps in wanted.items() if steps != asked[name]}
    if positional := by_position & changed.keys():
        name = min(positional)
        raise InvalidOptionError(f"{name_of(method)} sets {name}, which was given by position: give it by keyword")
    return {**kwargs, **changed}
