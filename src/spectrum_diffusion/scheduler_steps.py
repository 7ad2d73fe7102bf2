"""A pipeline's scheduler, whose steps something else answers for the time of a generation."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .core.replay import StepCall
from .core.sampler import refusal
from .core.signatures import call_parameters
from .core.subclass import thin_subclass
from .discovery import pipelines_of, schedulers_of
from .stepping import why_steps_differ


@contextmanager
def intercept_steps(
    scheduler: Any, answer: Callable[[StepCall], Any], when_copied: Callable[[], None] | None = None
) -> Iterator[None]:
    """Let ``answer`` take the scheduler's steps while the block lasts.

    The scheduler's class is a thin subclass meanwhile, so that copies, which are of the plain class, step by
    themselves; ``step`` keeps its signature, since pipelines inspect it.

    Args:
        scheduler: a diffusers scheduler.
        answer: takes a step; what the scheduler would return.
        when_copied: called before a copy of the scheduler is made; it may refuse.
    """
    cls: Any = type(scheduler)
    if not hasattr(cls, "step"):  # a scheduler of deprecated pipelines with steps of other names
        yield
        return
    signature = inspect.signature(cls.step)

    @functools.wraps(cls.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:
            return cls.step(self, *args, **kwargs)
        return answer(StepCall(self, cls.step, signature.bind(self, *args, **kwargs)))

    scheduler.__class__ = thin_subclass(cls, {"step": step}, when_copied)
    try:
        yield
    finally:
        scheduler.__class__ = cls


def refuse_copies() -> None:
    """Raise :class:`UnsupportedModelError`: what a copy of the scheduler is given can't be forecast."""
    raise refusal("it steps copies of its scheduler")


def check_schedulers(target: Any) -> None:
    """Raise where what the scheduler is given can't be forecast.

    Raises:
        UnsupportedModelError: a bare denoiser, a scheduler that does not step once for each evaluation, or guidance
            that remembers earlier outputs.
    """
    if reason := _obstacle_of(target):
        raise refusal(reason, type(target).__name__)


def check_scheduler(target: Any, scheduler: Any) -> None:
    """Likewise for one scheduler of a pipeline."""
    if reason := _obstacle(scheduler):
        raise refusal(reason, type(target).__name__)


def schedulers_in(target: Any) -> list[Any]:
    """The schedulers of a pipeline and of the pipelines inside it."""
    return [getattr(owner, name) for owner, name in schedulers_of(target)]


def why_uncorrected(scheduler: Any) -> str:
    """Why a path through the scheduler's steps can't be corrected, or ""."""
    if scheduler is None:
        return "you step in a loop of your own"
    if reason := _obstacle(scheduler):
        return reason
    config = getattr(scheduler, "config", {})
    clipped = [name for name in ("clip_sample", "thresholding") if config.get(name, False)]
    return f"the scheduler clips the samples that it predicts ({clipped[0]})" if clipped else ""


def _obstacle_of(target: Any) -> str:
    if isinstance(target, nn.Module):
        return "a bare denoiser has no scheduler"
    for scheduler in schedulers_in(target):
        if reason := _obstacle(scheduler):
            return reason
    for pipe in pipelines_of(target):
        if reason := why_steps_differ(type(pipe)):
            return reason
    return "its guidance remembers earlier outputs (momentum)" if _has_momentum(target) else ""


def _obstacle(scheduler: Any) -> str:
    name = type(scheduler).__name__
    if not hasattr(scheduler, "step"):
        return f"{name} has no method named step"
    missing = {"model_output", "sample"} - inspect.signature(scheduler.step).parameters.keys()
    if missing:
        return f"{name} takes no {' and no '.join(sorted(missing))} in its step"
    if getattr(scheduler, "order", 1) > 1:
        return f"{name} evaluates the denoiser several times a step"
    return ""


def _has_momentum(pipe: Any) -> bool:
    if any("momentum" in name for name in call_parameters(pipe)):
        return True
    modules = [vars(sys.modules[cls.__module__]) for cls in type(pipe).__mro__ if cls.__module__ in sys.modules]
    guider = getattr(pipe, "guider", None)
    return any("MomentumBuffer" in names for names in modules) or bool(getattr(guider, "momentum", None))
