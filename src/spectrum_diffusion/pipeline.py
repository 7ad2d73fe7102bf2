"""``enable`` and ``disable`` for a diffusers pipeline or a bare denoiser, and the handle that comes of it.

While a pipeline is enabled its class is a thin subclass that opens a generation around ``__call__``: begin, end,
failure and thread are known exactly. The step of a denoiser's call is read from the scheduler of that running call.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from . import denoisers
from .errors import ConflictError, InvalidOptionError, SpectrumError, UnsupportedModelError, warn
from .hooks import Denoiser, Interceptor, Snapshot, compiled, refuse_conflicts, refuse_training
from .methods import METHODS, AnyMethod, Rival, make_method
from .plan import Plan, PlanLike, read_plan
from .run import Arguments, Clock, ManualClock, ManualRun, OnStep, Run
from .schedule import check_integer, check_number
from .sites import make_site
from .solvers import check_solver, sampling_with
from .summary import Summary, Trace, summarize

DENOISER_NAMES = ("transformer", "transformer_2", "unet", "prior", "decoder", "denoiser")
"""Component names under which pipelines keep a denoiser, for classes that the table doesn't know."""

INSIDE_BLOCKS = ("module", "tokens", "deep")
"""Sites that answer for modules inside of blocks, which no compiled block would ask."""


class Handle:
    """An enabled pipeline or denoiser: its method, and what the last generation did. A context manager.

    Leaving the ``with`` block disables. The handle does not keep the pipeline alive.

    Attributes:
        method: the method with its options, a frozen dataclass.
    """

    def __init__(
        self, target: Any, method: AnyMethod, *, timing: bool, audit: bool, flops: bool, on_step: OnStep | None
    ) -> None:
        self.method = method
        self._timing, self._audit, self._flops, self._on_step = timing, audit, flops, on_step
        self._target = weakref.ref(target, lambda _: self._detach())
        self._denoisers: dict[str, Denoiser] = {}
        self._trace: Trace | None = None
        self._thread: int | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._retired = False
        self._before: Snapshot | None = None  # of the models that another package's cache stands on

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        if (target := self.target) is not None and _handle_of(target) is self:
            disable(target)

    @property
    def target(self) -> Any:
        """The pipeline or model, or None where it was dropped."""
        return self._target()

    @property
    def models(self) -> list[nn.Module]:
        """The denoisers it stands on, those that were dropped left out."""
        return [model for denoiser in self._denoisers.values() if (model := denoiser.model) is not None]

    def summary(self) -> Summary:
        """What the last generation did.

        Raises:
            SpectrumError: nothing has been generated since ``enable``.
        """
        if self._trace is None:
            raise SpectrumError("nothing was generated since enable(…): call the pipeline first, then ask")
        return summarize(self._trace)

    @contextmanager
    def run(self, total_steps: int, sigmas: Sequence[float] | None = None) -> Iterator[ManualRun]:
        """A run of your own sampling loop: say ``run.step(i)`` before the denoiser's calls of each step.

        Args:
            total_steps: number of steps T of the loop, which scales time and fixes the schedule.
            sigmas: noise level of each step, (T,), for ``time="sigma"`` and ``"log-snr"``.

        Raises:
            InvalidOptionError: ``total_steps`` below 1, or too few for the wanted speedup or evaluated steps, or
                ``sigmas`` of another length.
            ConflictError: another generation is under way.
        """
        clock = ManualClock(check_integer("total_steps", total_steps, least=1), levels=_levels(sigmas, total_steps))
        self.method.begin(clock.total)  # refuses before anything runs
        with self._generating(), ExitStack() as stack:
            run = self._new_run(clock)
            stack.callback(run.close)
            session = ManualRun(run, clock)
            for denoiser in self._denoisers.values():
                stack.enter_context(denoiser.serving(session))
            yield session

    def _new_run(self, clock: Clock, earlier_loops: int = 0) -> Run:
        self._trace = Trace(
            name_of(self.method),
            self.method.site,
            timing=self._timing,
            flops=self._flops,
            earlier_loops=earlier_loops,
            package=(self.method.package, self.method.version()) if isinstance(self.method, Rival) else None,
        )
        return Run(self.method, clock, self._trace, on_step=self._on_step, audit=self._audit)

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """Mark a generation as under way: attach anew what was compiled since, refuse what can't be now."""
        if self._retired:
            raise SpectrumError("this handle was disabled or replaced, or its target is gone: enable(…) again")
        with self._lock:
            if self._thread is not None:
                raise ConflictError(
                    "this pipeline is already generating, and neither diffusers' schedulers nor a history can serve "
                    "two calls at once: give each thread a pipeline of its own, or run them one after the other"
                )
            self._thread = threading.get_ident()
        try:
            self._attach()
            if isinstance(self.method, Rival):
                self.method.reset(self.target, self.models)
            begin = time.perf_counter()
            try:
                yield
            finally:
                if self._trace is not None:
                    self._trace.wall_seconds = time.perf_counter() - begin
        finally:
            self._thread = None

    def _attach(self) -> None:
        """Stand on the target's denoisers as they are now; components may have been swapped or compiled."""
        target = self.target
        found = _denoisers_of(target, self.method.site)
        for name, model in found.items():
            _refuse(model, name, self.method, cached=self._caches(model))
        for name, denoiser in list(self._denoisers.items()):
            if denoiser.model is not found.get(name):
                self._denoisers.pop(name).detach(self)
        for name, model in found.items():
            denoiser = self._denoisers.setdefault(name, Denoiser.of(model, name))
            denoiser.site(self.method)
            denoiser.attach(self)

    def _caches(self, model: nn.Module) -> bool:
        """Whether the cache on a model is this handle's own; another model has taken its place otherwise."""
        if self._before is not None and all(model is not own for own in self.models):
            raise ConflictError(
                f"{type(model).__name__} was put into the pipeline after enable(…), and {name_of(self.method)} stands "
                "on the one before: enable(…) again"
            )
        return self._before is not None

    def _install(self) -> None:
        """Let another package put its cache on, if that is the method; what it refuses is taken off again."""
        if isinstance(self.method, Rival):
            self._before = Snapshot(self.models)
            self.method.install(self.target, self.models)

    def _uninstall(self) -> None:
        if isinstance(self.method, Rival) and self._before is not None:
            self.method.remove(self.target, self.models)
            self._before.restore()
            self._before = None

    def _detach(self) -> None:
        self._uninstall()
        for denoiser in self._denoisers.values():
            denoiser.detach(self)
        self._denoisers.clear()
        self._retired = True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)


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


class SchedulerClock:
    """Reads the step from the scheduler of the running call.

    In order: the scheduler's own count (``step_index``; ``counter`` of PNDM), else the place of the call's timestep in
    ``scheduler.timesteps``. Steps are counted from where the run begins, which is later in image-to-image.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._scheduler = pipe, pipe.scheduler
        self._timesteps = self._scheduler.timesteps
        self._start: int | None = getattr(self._scheduler, "begin_index", None)
        self._uncounted = False  # calls were made before the scheduler had an index
        self._values: list[float] | None = None
        self._place = 0

    def is_current(self) -> bool:
        """Whether the scheduler's timesteps are still those of this loop."""
        return self._pipe.scheduler is self._scheduler and self._scheduler.timesteps is self._timesteps

    @property
    def total(self) -> int:
        left = len(self._timesteps) - (self._start or 0)
        set_by_call = getattr(self._pipe, "num_timesteps", None)  # SDXL's denoising_end cuts the loop short
        return min(left, set_by_call) if isinstance(set_by_call, int) and set_by_call > 0 else left

    def locate(self, call: Arguments) -> int | None:
        if hasattr(self._scheduler, "step_index"):
            return self._from_index(self._scheduler.step_index)
        if hasattr(self._scheduler, "counter"):
            return int(self._scheduler.counter)
        return self._from_timestep(call)

    def sigmas(self) -> list[float]:
        start, timesteps = self._start or 0, torch.as_tensor(self._timesteps).double()
        if (sigmas := getattr(self._scheduler, "sigmas", None)) is not None and len(sigmas) >= len(timesteps):
            levels = torch.as_tensor(sigmas).double()
        elif (alphas := getattr(self._scheduler, "alphas_cumprod", None)) is not None:
            kept = torch.as_tensor(alphas).double()[timesteps.long().cpu()]
            levels = ((1 - kept) / kept).sqrt()
        else:
            raise InvalidOptionError(
                f'{type(self._scheduler).__name__} tells no noise levels, so time must be "index" with it'
            )
        return levels[start : start + self.total].tolist()

    def _from_index(self, index: int | None) -> int:
        if index is None:  # the first step: many schedulers find their index only in step()
            self._uncounted = True
            return 0
        if self._start is None:
            self._start = index - 1 if self._uncounted else index
        return index - self._start

    def _from_timestep(self, call: Arguments) -> int | None:
        timestep = call.named("timestep")
        if timestep is None:
            return None
        if self._values is None:
            self._values = torch.as_tensor(self._timesteps).double().tolist()
        value = float(torch.as_tensor(timestep).flatten()[0])
        rest = self._values[self._place :]
        nearest = min(range(len(rest)), key=lambda i: abs(rest[i] - value))
        if abs(rest[nearest] - value) > 0.004 * max(1.0, abs(value)):  # bfloat16 keeps 8 bits
            return None
        self._place += nearest
        if self._start is None:
            self._start = self._place
        return self._place - self._start


def enable(
    pipe_or_model: Any,
    method: str = "spectrum",
    *,
    speedup: float | None = None,
    plan: PlanLike | None = None,
    timing: bool = False,
    audit: bool = False,
    flops: bool = False,
    on_step: OnStep | None = None,
    **options: Any,
) -> Handle:
    """Make a diffusers pipeline, or a bare denoiser, skip most of its evaluations. Enabling again replaces.

    Args:
        pipe_or_model: a diffusers pipeline; or a denoiser, for your own loop under ``handle.run(total_steps=T)``.
        method: a name of ``METHODS``: "spectrum" (the default), "paper", "taylor", "reuse", "fewer-steps", …
        speedup: wanted ratio of steps to evaluations, within 1 … T/(W+1); else the method's own schedule.
        plan: a file that ``spectrum tune`` wrote, or what is in it: its method and options, but for ``options``.
        timing: measure the time spent evaluating, forecasting and outside (CUDA events on a GPU).
        audit: evaluate every step but sample as if the method had skipped, and report the forecasts' errors.
        flops: count the floating-point operations of the denoiser's calls; slower, and not within compiled code.
        on_step: called after each denoiser call with (step, branch, action, reason); the action is "evaluated",
            "forecast", "partial" or "fallback".
        options: the method's options, e.g. ``interval``, ``warmup``, ``slope``, ``evaluated``, ``degree``, ``ridge``,
            ``order``, ``site`` ("last_block" or "output").

    Returns:
        A handle with ``summary()``, ``run(total_steps)``; a context manager that disables at its end.

    Raises:
        InvalidOptionError: an unknown method or option, a wrong value, or a plan of another method or for another
            denoiser; nothing is changed.
        UnsupportedModelError: no row for the denoiser's class, or no last block; the message names the way out.
        ConflictError: another cache is active on the denoiser, or its forward was replaced.
        SpectrumError: the denoiser is in training mode.
    """
    if on_step is not None and not callable(on_step):
        raise InvalidOptionError(f"on_step={on_step!r} is not callable: give a function (step, branch, action, reason)")
    if speedup is not None:
        options["speedup"] = speedup
    chosen = read_plan(plan) if plan is not None else None
    if chosen is not None:
        method, options = chosen.applied(method, options)
    made = make_method(method, **options)
    return enable_method(pipe_or_model, made, plan=chosen, timing=timing, audit=audit, flops=flops, on_step=on_step)


def enable_method(
    pipe_or_model: Any,
    made: AnyMethod,
    *,
    plan: Plan | None = None,
    timing: bool = False,
    audit: bool = False,
    flops: bool = False,
    on_step: OnStep | None = None,
) -> Handle:
    """:func:`enable` with a method that is made already, under a name or not."""
    is_pipe = _is_pipeline(pipe_or_model)
    if not is_pipe and not isinstance(pipe_or_model, nn.Module):
        raise UnsupportedModelError(
            f"{type(pipe_or_model).__name__} is neither a diffusers pipeline nor a torch.nn.Module: give one of them"
        )
    if isinstance(made, Rival):
        _check_rival(made, audit)
    previous = _handle_of(pipe_or_model)
    for name, model in _denoisers_of(pipe_or_model, made.site).items():
        _refuse(model, name, made, cached=previous is not None and previous._caches(model))
        identity = denoisers.identity(model)
        if plan is not None:
            plan.check(identity)
        made = made.fitted(identity)
    if made.solver is not None:
        check_solver(pipe_or_model, made.solver)
    disable(pipe_or_model)
    handle = Handle(pipe_or_model, made, timing=timing, audit=audit, flops=flops, on_step=on_step)
    handle._attach()
    if is_pipe:
        pipe_or_model.__class__ = _scoped(type(pipe_or_model), handle)
    try:
        handle._install()
    except BaseException:
        disable(pipe_or_model)
        raise
    return handle


def disable(pipe_or_model: Any) -> None:
    """Undo :func:`enable`: exactly the pipeline or model it was. Harmless where nothing is enabled.

    Raises:
        ConflictError: a generation is under way.
    """
    handle = _handle_of(pipe_or_model)
    if handle is None:
        return
    if handle._thread is not None:
        raise ConflictError("a generation is under way: disable(…) after it has ended")
    handle._detach()
    if _is_pipeline(pipe_or_model):
        pipe_or_model.__class__ = type(pipe_or_model).__dict__["_spectrum_original"]


def _handle_of(target: Any) -> Handle | None:
    if not isinstance(target, nn.Module):
        handle = type(target).__dict__.get("_spectrum_handle")
        return handle if handle is not None and handle.target is target else None
    denoiser = Denoiser.on(target)
    users = denoiser.users if denoiser is not None else ()
    return next((user for user in users if isinstance(user, Handle) and user.target is target), None)


def _scoped(cls: type, handle: Handle) -> type:
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
        make, args, *rest = super(scoped, self).__reduce_ex__(protocol)
        if make.__name__ == "__newobj__":  # pickle refuses it with another class than the object's
            make = object.__new__
        return (make, tuple(cls if arg is scoped else arg for arg in args), *rest)

    names = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, "_spectrum_handle": handle}
    inherited = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    scoped: Any = type(cls)(cls.__name__, (cls,), {**inherited, **names, "_spectrum_original": cls})
    return scoped


@contextmanager
def _generation(handle: Handle, pipe: Any) -> Iterator[None]:
    with handle._generating(), sampling_with(pipe, handle.method.solver), ExitStack() as stack:
        handle._trace = None
        generation = Generation(handle, pipe)
        stack.callback(generation.close)
        for denoiser in handle._denoisers.values():
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


def _is_pipeline(target: Any) -> bool:
    return not isinstance(target, nn.Module) and hasattr(target, "components") and callable(target)


def _denoisers_of(target: Any, site: str) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component name, or the bare model itself."""
    if isinstance(target, nn.Module):
        return {"model": target}
    modules: dict[str, nn.Module] = {}
    for name, value in target.components.items():
        if isinstance(value, nn.Module) and not any(value is other for other in modules.values()):
            modules[name] = value
    found = {name: module for name, module in modules.items() if denoisers.row_for(module) is not None}
    if "output" in site and not found:
        found = {name: module for name, module in modules.items() if name in DENOISER_NAMES}
    if not found:
        classes = ", ".join(f"{name}: {type(module).__name__}" for name, module in modules.items()) or "none"
        raise UnsupportedModelError(
            f"{type(target).__name__} has no denoiser that the table knows (its modules: {classes}): use "
            'site="output", or add a row with register_denoiser(…)'
        )
    if getattr(target, "scheduler", None) is None:
        raise UnsupportedModelError(
            f"{type(target).__name__} has no component named scheduler, so its steps can't be read: enable the "
            "pipelines it is made of, or the bare denoiser with handle.run(total_steps=T)"
        )
    return found


def _check_rival(method: Rival, audit: bool) -> None:
    if audit:
        raise InvalidOptionError(
            f"audit=True measures this library's forecasts, and {name_of(method)} makes none of them"
        )
    method.check()


def _refuse(model: nn.Module, name: str, method: AnyMethod, *, cached: bool = False) -> None:
    """Raise where the method can't be on the model, before anything has been changed.

    A model that is ``cached`` carries the cache of another package that enable(…) itself has put on.
    """
    refuse_training(model, name)
    if not cached:
        refuse_conflicts(model, name)
    make_site(model, method, lambda module: Interceptor(module, None))
    if "output" in method.site:
        return
    if compiled(model) and not method.observes:
        way = 'site="output"' if "output" in method.sites else 'easycache, or spectrum with site="output"'
        raise UnsupportedModelError(
            f"{name} is compiled as a whole, and no block can be skipped inside one graph: use {way}, or compile its "
            "blocks with compile_repeated_blocks(fullgraph=True)"
        )
    if method.site in INSIDE_BLOCKS and any(compiled(block) for block in denoisers.main_blocks(model)):
        way = 'site="last_block"' if "last_block" in method.sites else 'spectrum, taylor or reuse at site="last_block"'
        raise UnsupportedModelError(
            f"the blocks of {name} are compiled, and no module can be skipped inside their graphs: use {way}, which "
            "skips the blocks whole"
        )
    if method.observes and any(compiled(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"{name} has compiled modules, and what runs inside their graphs can't be watched: use "
            f"{name_of(method)} on the plain model, or without this library"
        )


def _levels(sigmas: Sequence[float] | None, total: int) -> list[float] | None:
    if sigmas is None:
        return None
    levels = [check_number("sigma", sigma, least=0.0) for sigma in sigmas]
    if len(levels) != total:
        raise InvalidOptionError(f"sigmas has {len(levels)} noise levels: give one for each of the {total} steps")
    return levels


STOCHASTIC = ("Ancestral", "SDE", "LCM", "TCD", "DDPM", "CogVideoXDPM")


def is_stochastic(scheduler: Any) -> bool:
    """Whether the scheduler adds noise at each step, by its class or configuration."""
    config = getattr(scheduler, "config", {})
    by_config = "sde" in str(config.get("algorithm_type", "")) or config.get("stochastic_sampling", False)
    return bool(by_config) or any(part in type(scheduler).__name__ for part in STOCHASTIC)


def name_of(method: AnyMethod) -> str:
    """The name under which a method is known."""
    return next((name for name, cls in METHODS.items() if cls is type(method)), type(method).__name__)
