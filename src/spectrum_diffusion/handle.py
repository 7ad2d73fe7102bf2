"""``enable`` and ``disable`` for a diffusers pipeline or a bare denoiser, and the handle that ``enable`` returns."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from .conditions import Conditions
from .core.clock import Clock, ManualClock
from .core.corrector import Corrector
from .core.run import ManualRun, OnStep, Run
from .core.sampler import SamplerRun
from .core.schedule import check_integer, check_number
from .core.summary import Summary, Trace, summarize_stages
from .discovery import denoisers_of, is_pipeline
from .errors import ConflictError, InvalidOptionError, SpectrumError, UnsupportedModelError, warn
from .interop.snapshot import Snapshot
from .methods import AnyMethod, make_method, name_of
from .pipeline import enabled_class
from .plan import DEFAULT_METHOD, Plan, PlanLike, read_plan
from .recipe import Recipe, resolve
from .scheduler_steps import check_scheduler, why_uncorrected
from .sites import site_class
from .sites.denoiser import Denoiser
from .sites.imprint import Imprint

if TYPE_CHECKING:
    from .memory import MemoryEstimate


class Handle:
    """An enabled pipeline or denoiser: its method, and what the last generation did. A context manager.

    Leaving the ``with`` block disables. The handle does not keep the pipeline alive.

    Attributes:
        method: the method with its options, a frozen dataclass.
    """

    def __init__(
        self,
        target: Any,
        asked: AnyMethod,
        *,
        plan: Plan | None,
        timing: bool,
        audit: bool,
        flops: bool,
        on_step: OnStep | None,
    ) -> None:
        self.method = asked
        self._asked, self._plan = asked, plan
        self._timing, self._audit, self._flops, self._on_step = timing, audit, flops, on_step
        # At interpreter exit there is nothing to restore, and the globals that detaching needs no longer exist.
        exiting = sys.is_finalizing
        self._target = weakref.ref(target, lambda _: None if exiting() else self._detach())
        self._recipe: Recipe | None = None
        self._imprints: dict[str, Imprint] = {}
        self._traces: dict[str, Trace] = {}  # by stage, in order
        self._thread: int | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._retired = False
        self.conditions: Conditions | None = None  # of the loop under way or the last, where they matter
        self._before: Snapshot | None = None  # of models with the cache of another package

    def __repr__(self) -> str:
        target = self.target
        place = "a target that no longer exists" if target is None else type(target).__name__
        state = "" if target is None or _handle_of(target) is self else ", disabled"
        return f"<Handle of {name_of(self.method)} on {place}{state}>"

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        if (target := self.target) is not None and _handle_of(target) is self:
            disable(target)

    @property
    def target(self) -> Any:
        """The pipeline or model, or None if it no longer exists."""
        return self._target()

    @property
    def models(self) -> list[nn.Module]:
        """The models that the handle is attached to, without those that no longer exist."""
        return list(self._recipe.models.values()) if self._recipe is not None else []

    @property
    def denoisers(self) -> list[Denoiser]:
        """The denoisers that the handle is attached to."""
        return self._recipe.denoisers if self._recipe is not None else []

    @property
    def traces(self) -> list[Trace]:
        """The traces of the last generation, one for each stage."""
        return list(self._traces.values())

    def summary(self) -> Summary:
        """What the last generation did.

        Raises:
            SpectrumError: nothing was generated since ``enable``.
        """
        if not self._traces:
            raise SpectrumError("nothing was generated since enable(…): call the pipeline first")
        return summarize_stages(list(self._traces.values()))

    def memory_estimate(
        self,
        *,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        batch: int | None = None,
        **call: Any,
    ) -> MemoryEstimate:
        """The memory that the method will hold in a call of the pipeline, before it runs.

        The call runs with denoisers that compute shapes only, so it takes seconds and no memory beyond latents. Text
        encoders run, unless ``prompt_embeds`` are passed.

        Args:
            height: of the image, in pixels; default: the pipeline's.
            width: likewise.
            frames: of the video.
            batch: images or videos for each prompt.
            call: any other argument of the pipeline's call, such as ``num_inference_steps`` or ``image``.

        Raises:
            InvalidOptionError: the pipeline does not take an argument.
            UnsupportedModelError: a bare denoiser, the cache of another package, or a denoiser that does not run on
                the meta device.
        """
        from .memory import estimate  # which enables a pipeline

        return estimate(self, {"height": height, "width": width, "frames": frames, "batch": batch, **call})

    @contextmanager
    def run(self, total_steps: int, sigmas: Sequence[float] | None = None) -> Iterator[ManualRun]:
        """The run of your own sampling loop: call ``run.step(i)`` before the denoiser's calls of each step.

        Args:
            total_steps: number of steps T of the loop, which scales time and fixes the schedule.
            sigmas: noise level of each step, (T,), for ``time="sigma"`` and ``"log-snr"``.

        Raises:
            InvalidOptionError: ``total_steps`` is below 1 or too low for the speedup or the evaluated steps, or
                ``sigmas`` has another length.
            ConflictError: another generation is under way.
        """
        clock = ManualClock(check_integer("total_steps", total_steps, least=1), levels=_levels(sigmas, total_steps))
        self.method.begin(clock.total)  # refuses before anything runs
        if self.at_scheduler:
            raise UnsupportedModelError(
                'site="sampler" forecasts what a pipeline gives to its scheduler, and you step in a loop of your own: '
                'use site="output"'
            )
        with self._generating(), ExitStack() as stack:
            self._traces = {}
            run = self._new_run(clock)
            assert isinstance(run, Run)
            stack.callback(run.close)
            session = ManualRun(run, clock)
            for denoiser in self.denoisers:
                stack.enter_context(denoiser.serving(session))
            yield session
            self._warn_if_broken(run.trace)

    @property
    def at_scheduler(self) -> bool:
        """Whether the scheduler is given forecasts, in place of features of the denoisers."""
        return site_class(self.method.site).at_scheduler

    def begins(self, conditions: Callable[[], Conditions]) -> None:
        """Check the plan against the conditions of a loop, before anything of it runs.

        Raises:
            InvalidOptionError: the plan is of no use there.
        """
        if self._plan is None and not self.method.needs_conditions:
            return
        self.conditions = conditions()
        for warning in self._plan.begins(self.conditions) if self._plan is not None else ():
            self._warn_once(warning)

    def _new_run(self, clock: Clock, stage: str = "", scheduler: Any = None) -> Run | SamplerRun:
        if self._plan is not None and (warning := self._plan.mismatch(clock.total)):
            self._warn_once(warning)
        earlier = self._traces.pop(stage, None)
        trace = self._traces[stage] = Trace(
            name_of(self.method),
            self.method.site,
            timing=self._timing,
            flops=self._flops,
            earlier_loops=earlier.earlier_loops + 1 if earlier else 0,
            stage=stage,
            package=(self.method.package, self.method.version()) if self.method.package else None,
        )
        corrector = self._corrector(scheduler, trace)
        if self.at_scheduler:
            assert corrector is not None
            return SamplerRun(self.method, clock, trace, corrector, on_step=self._on_step, audit=self._audit)
        return Run(self.method, clock, trace, corrector=corrector, on_step=self._on_step, audit=self._audit)

    def _corrector(self, scheduler: Any, trace: Trace) -> Corrector | None:
        if (path := self.method.path()) is None:
            return None
        if self.at_scheduler:
            check_scheduler(self.target, scheduler)  # the pipeline may have another one since enable(…)
        corrector = Corrector(scheduler, path, trace)
        if reason := why_uncorrected(scheduler):
            corrector.stop(reason)
            return corrector if self.at_scheduler else None
        return corrector

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """Mark a generation as under way, on the denoisers as they are now."""
        if self._retired:
            raise SpectrumError(
                "this handle was disabled or replaced, or its target no longer exists: call enable(…) again"
            )
        with self._lock:
            if self._thread == threading.get_ident():
                raise ConflictError(
                    "a generation of this handle is under way in this thread: leave its handle.run(…) before you "
                    "start the next"
                )
            if self._thread is not None:
                raise ConflictError(
                    "this pipeline is already generating, and neither its scheduler nor a history serves two calls at "
                    "once: give each thread a pipeline of its own, or run the calls one after the other"
                )
            self._thread = threading.get_ident()
        try:
            self._refresh()
            self.method.reset(self.target, self.models)
            begin = time.perf_counter()
            try:
                yield
            finally:
                for trace in self._traces.values():
                    trace.wall_seconds = time.perf_counter() - begin
        finally:
            self._thread = None

    def _refresh(self) -> None:
        """Resolve again if components were swapped, or modules exchanged, compiled or patched since."""
        models = denoisers_of(self.target, self._asked.site)
        if models.keys() == self._imprints.keys() and all(self._imprints[n].matches(models[n]) for n in models):
            return
        self._uninstall()
        recipe = resolve(self.target, self._asked, self._plan)
        try:
            self._stand(recipe)
        except BaseException:
            self._uninstall()
            raise

    def _stand(self, recipe: Recipe) -> None:
        """Attach to the denoisers of a recipe, and install the cache of another package, if that is the method.

        Raises:
            UnsupportedModelError: the other package refuses. It may leave parts of its cache behind, for
                :meth:`_uninstall`.
        """
        for denoiser in self.denoisers:
            if denoiser not in recipe.denoisers:
                denoiser.detach(self)
        self._recipe, self.method = recipe, recipe.method
        recipe.attach(self)
        if self.method.observes:
            self._before = Snapshot(self.models)
            self.method.install(self.target, self.models)
        self._imprints = recipe.imprints()

    def _uninstall(self) -> None:
        self._imprints = {}
        if self._before is not None:
            self.method.remove(self.target, self.models)
            self._before.restore()
            self._before = None

    def _detach(self) -> None:
        self._uninstall()
        for denoiser in self.denoisers:
            denoiser.detach(self)
        self._recipe = None
        self._retired = True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    def _warn_if_broken(self, trace: Trace) -> None:
        if steps := trace.broken():
            self._warn_once(
                f"{trace.stage or 'the denoiser'} gave NaN or infinite values at step {', '.join(map(str, steps))}, "
                "which no forecast uses: the values evaluated before stand in for them. Sample without this library to "
                "see whether the model does so by itself, for example because float16 is too narrow for it"
            )


def enable(
    pipe_or_model: Any,
    method: str = DEFAULT_METHOD,
    *,
    speedup: float | None = None,
    plan: PlanLike | None = None,
    timing: bool = False,
    audit: bool = False,
    flops: bool = False,
    on_step: OnStep | None = None,
    **options: Any,
) -> Handle:
    """Make a diffusers pipeline, or a bare denoiser, skip most of its evaluations. Enabling again replaces it.

    Args:
        pipe_or_model: a diffusers pipeline; or a denoiser, for your own loop with ``handle.run(total_steps=T)``.
        method: a name of ``METHODS``: "spectrum" (the default), "paper", "taylor", "reuse", "fewer-steps", …
        speedup: wanted ratio of steps to evaluations, at least 1; default: the method's own schedule.
        plan: a file that ``spectrum tune`` wrote, or its contents: method and options; ``options`` override them.
        timing: measure the time spent evaluating, forecasting and outside (CUDA events on a GPU).
        audit: evaluate skipped steps too and report the errors of the forecasts; samples are those without audit.
        flops: count the floating-point operations of the denoiser's calls; slower, and blind to compiled code.
        on_step: called after each denoiser call with (step, branch, action, reason); the action is "evaluated",
            "forecast", "partial" or "fallback".
        options: the method's options, e.g. ``warmup``, ``evaluated``, ``site`` ("output", "last_block" …). An unknown
            one is refused with a list of those that exist.

    Returns:
        A handle with ``summary()`` and ``run(total_steps)``. As a context manager, it disables at its end.

    Raises:
        InvalidOptionError: an unknown method or option, a wrong value, or a plan for another method or denoiser.
            Nothing changes then.
        UnsupportedModelError: the method does not work on the denoiser. The message says what does.
        ConflictError: another cache is active on the denoiser, or its forward was replaced.
        SpectrumError: the denoiser is in training mode.
    """
    if on_step is not None and not callable(on_step):
        raise InvalidOptionError(f"on_step={on_step!r} is not callable: pass a function (step, branch, action, reason)")
    if speedup is not None:
        options["speedup"] = speedup
    calibrated = read_plan(plan) if plan is not None else None
    if calibrated is not None:
        method, options = calibrated.applied(method, options)
    return enable_method(
        pipe_or_model,
        make_method(method, **options),
        plan=calibrated,
        timing=timing,
        audit=audit,
        flops=flops,
        on_step=on_step,
    )


def enable_method(
    pipe_or_model: Any,
    method: AnyMethod,
    *,
    plan: Plan | None = None,
    timing: bool = False,
    audit: bool = False,
    flops: bool = False,
    on_step: OnStep | None = None,
) -> Handle:
    """:func:`enable` with a method instead of a name and options."""
    for name, flag in (("timing", timing), ("audit", audit), ("flops", flops)):
        if not isinstance(flag, bool):
            raise InvalidOptionError(f"{name}={flag!r} is not a flag: pass True or False")
    _check_target(pipe_or_model)
    method.check()
    if audit and method.observes:
        raise InvalidOptionError(
            f"audit=True measures this library's forecasts, and {name_of(method)} makes none: leave audit out"
        )
    previous = _handle_of(pipe_or_model)
    cached = previous.models if previous is not None and previous._before is not None else ()
    recipe = resolve(pipe_or_model, method, plan, cached=cached)
    disable(pipe_or_model)
    handle = Handle(pipe_or_model, method, plan=plan, timing=timing, audit=audit, flops=flops, on_step=on_step)
    if is_pipeline(pipe_or_model):
        pipe_or_model.__class__ = enabled_class(type(pipe_or_model), handle)
    try:
        handle._stand(recipe)
    except BaseException:
        _undo(handle, pipe_or_model)
        raise
    return handle


def disable(pipe_or_model: Any) -> None:
    """Undo :func:`enable`: exactly the pipeline or model it was. Harmless where nothing is enabled.

    Raises:
        ConflictError: a generation is under way.
        UnsupportedModelError: it is neither a pipeline nor a model, such as a handle.
    """
    _check_target(pipe_or_model)
    handle = _handle_of(pipe_or_model)
    if handle is None:
        return
    if handle._thread is not None:
        raise ConflictError("a generation is under way: call disable(…) after it has ended")
    _undo(handle, pipe_or_model)


def _undo(handle: Handle, pipe_or_model: Any) -> None:
    handle._detach()
    if is_pipeline(pipe_or_model):
        pipe_or_model.__class__ = type(pipe_or_model).__dict__["_spectrum_original"]


def _check_target(value: Any) -> None:
    """Raise :class:`UnsupportedModelError` for what is neither a pipeline nor a model, and say what to pass instead."""
    if is_pipeline(value) or isinstance(value, nn.Module):
        return
    shown, remedy = type(value).__name__, "pass one of them"
    if isinstance(value, type):
        shown, remedy = f"the class {value.__name__}", f"pass an instance, such as {value.__name__}.from_pretrained(…)"
    elif isinstance(value, str):
        shown, remedy = repr(value), f"load it first, for example with load_pipeline({value!r})"
    elif isinstance(value, (list, tuple)):
        remedy = "pass its members one by one"
    elif isinstance(value, Handle):
        remedy = "pass what was enabled, which is handle.target"
    raise UnsupportedModelError(f"{shown} is neither a diffusers pipeline nor a torch.nn.Module: {remedy}")


def _handle_of(target: Any) -> Handle | None:
    if not isinstance(target, nn.Module):
        handle = type(target).__dict__.get("_spectrum_handle")
        return handle if handle is not None and handle.target is target else None
    denoiser = Denoiser.on(target)
    users: Iterable[Handle] = denoiser.users if denoiser is not None else ()
    return next((user for user in users if user.target is target), None)


def _levels(sigmas: Sequence[float] | None, total: int) -> list[float] | None:
    if sigmas is None:
        return None
    levels = [check_number("sigma", sigma, least=0.0) for sigma in sigmas]
    if len(levels) != total:
        raise InvalidOptionError(
            f"sigmas has {len(levels)} noise levels, but the run has {total} steps: pass one for each step"
        )
    return levels
