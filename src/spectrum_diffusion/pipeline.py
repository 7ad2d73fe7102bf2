"""A pipeline's call as a generation.

While a pipeline is enabled its class is a thin subclass that opens a generation around ``__call__``: begin, end,
failure and thread are known exactly.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from .core.calls import Arguments
from .core.run import Run
from .errors import InvalidOptionError
from .methods import AnyMethod, name_of
from .scheduler_clock import SchedulerClock, is_stochastic
from .sites import denoisers
from .sites.denoiser import Denoiser
from .solvers import sampling_with

if TYPE_CHECKING:
    from .handle import Handle


class Generation:
    """One call of an enabled pipeline: answers its denoisers' calls, with a run for each sampling loop in it."""

    def __init__(self, handle: Handle, pipe: Any) -> None:
        self._handle, self._pipe = handle, pipe
        self._clock: SchedulerClock | None = None
        self._run: Run | None = None
        self._loops = 0
        self.context: str | None = None

    def call(self, denoiser: Denoiser, call: Arguments) -> Any:
        run = self._current_run()
        run.context = self.context
        return run.call(denoiser, call)

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._warn_if_untouched()

    def _current_run(self) -> Run:
        """The run of the loop under way; a new tensor of timesteps is a new loop."""
        if self._run is None or self._clock is None or not self._clock.is_current():
            if self._run is not None:
                self._run.close()
            self._clock = SchedulerClock(self._pipe)
            self._run = self._handle._new_run(self._clock, self._loops)
            self._loops += 1
            self._warn_if_stochastic()
        return self._run

    def _warn_if_stochastic(self) -> None:
        scheduler = self._pipe.scheduler
        if is_stochastic(scheduler):
            self._handle._warn_once(
                f"{type(scheduler).__name__} adds noise at each step, which no forecast can foresee: expect lower "
                "quality than with a deterministic scheduler at the same number of evaluations"
            )

    def _warn_if_untouched(self) -> None:
        method, trace = self._handle.method, self._handle._trace
        if trace is None or not trace.calls or self._clock is None:
            return
        total = self._clock.total
        if method.untouched(total):
            self._handle._warn_once(
                f"a run of {total} steps is evaluated whole: there is nothing to skip and the result is untouched. "
                "Few-step models gain nothing; else give more steps or a smaller warmup"
            )
        if method.observes and all(call.ran for call in trace.calls):
            self._handle._warn_once(
                f"{name_of(method)} left every call whole: it knows nothing to cache in this model, or its options "
                f"never let it within {total} steps"
            )

    @contextmanager
    def naming_branches(self, model: nn.Module) -> Iterator[None]:
        """Learn the name that a pipeline gives to its guidance branch through ``model.cache_context(name)``."""
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
        # Another instance of this class was made from the enabled one and is plain; and a pipeline that calls itself
        # goes on with its generation.
        if handle.target is not self or handle._thread == threading.get_ident():
            return call(*args, **kwargs)
        kwargs = _with_sampler_steps(handle.method, cls.__call__, (self, *args), kwargs)
        with _generation(handle, self):
            return call(*args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # A copy, pickled or deep, is the plain pipeline: what is enabled is this one.
        make, args, *rest = super(subclass, self).__reduce_ex__(protocol)
        if make.__name__ == "__newobj__":  # pickle refuses it with another class than the object's
            make = object.__new__
        return (make, tuple(cls if arg is subclass else arg for arg in args), *rest)

    names = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, "_spectrum_handle": handle}
    inherited = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    subclass: Any = type(cls)(cls.__name__, (cls,), {**inherited, **names, "_spectrum_original": cls})
    return subclass


@contextmanager
def _generation(handle: Handle, pipe: Any) -> Iterator[None]:
    with handle._generating(), sampling_with(pipe, handle.method.solver), ExitStack() as stack:
        handle._trace = None
        generation = Generation(handle, pipe)
        stack.callback(generation.close)
        for denoiser in handle.denoisers:
            stack.enter_context(denoiser.serving(generation))
            assert denoiser.model is not None
            stack.enter_context(generation.naming_branches(denoisers.unwrap(denoiser.model)))
        yield


def _with_sampler_steps(
    method: AnyMethod, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's keywords with the number of steps that the method wants of the sampler."""
    if type(method).sampler_steps is AnyMethod.sampler_steps:
        return kwargs
    bound = inspect.signature(function).bind(*args, **kwargs)
    by_position = "num_inference_steps" in bound.arguments and "num_inference_steps" not in kwargs
    bound.apply_defaults()
    steps = bound.arguments.get("num_inference_steps")
    for override in ("sigmas", "timesteps"):
        if bound.arguments.get(override) is not None:
            raise InvalidOptionError(
                f"{name_of(method)} sets num_inference_steps, which {override}=… would override: leave {override} out"
            )
    if not isinstance(steps, int) or (wanted := method.sampler_steps(steps)) == steps:
        return kwargs
    if by_position:
        raise InvalidOptionError(f"{name_of(method)} sets num_inference_steps: give it by keyword, not by position")
    return {**kwargs, "num_inference_steps": wanted}
