"""Replaces the solver of a pipeline during a generation: DPM-Solver++ and UniPC of diffusers.

The new scheduler takes the configuration of the pipeline's own, as in ``UniPCMultistepScheduler.from_config(
pipe.scheduler.config)``, so that noise schedule, prediction type and shift remain those of the model.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .discovery import pipelines_of, schedulers_of
from .errors import InvalidOptionError, UnsupportedModelError

CLASSES = {"dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
"""The solvers of :data:`methods.base.SOLVERS`."""
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
"""Settings of flow matching that these solvers lack, or that mean another noise schedule for them."""

GENERATOR_IN_STEP = re.compile(r"self\.scheduler\.step\([^)]*\bgenerator=generator")


def check_solver(target: Any, solver: str) -> None:
    """Raise if a pipeline cannot sample with a solver.

    Raises:
        UnsupportedModelError: its scheduler or its call does not work with the solver; the message says which do.
        InvalidOptionError: ``target`` is a bare model, whose loop is the user's own.
    """
    if isinstance(target, nn.Module):
        raise InvalidOptionError(
            f"solver={solver!r} needs a pipeline, but got a bare model: use {CLASSES[solver]} in your own loop"
        )
    if getattr(target, "scheduler", None) is None:
        names = ", ".join(name for _, name in schedulers_of(target))
        raise UnsupportedModelError(
            f"{type(target).__name__} has no component named scheduler (its schedulers: {names}), so solver={solver!r} "
            "would not know which to replace: leave solver out"
        )
    if reason := obstacle(target, solver):
        able = [f"solver={other!r}" for other in CLASSES if not obstacle(target, other)]
        raise UnsupportedModelError(
            f"{type(target).__name__} with {type(target.scheduler).__name__} cannot sample with {CLASSES[solver]}: "
            f"{reason}. Use {' or '.join([*able, 'no solver'])} here"
        )


@contextmanager
def sampling_with(pipe: Any, solver: str | None) -> Iterator[None]:
    """Replace the pipeline's scheduler by a solver, and restore it at the end or after an error."""
    if solver is None:
        yield
        return
    check_solver(pipe, solver)  # the scheduler may have been changed since enable(…)
    own, owners = pipe.scheduler, _owners(pipe)
    replacement = make(own, solver)
    # Not by setattr, with which a pipeline would write the new class into its configuration.
    for owner in owners:
        owner.__dict__["scheduler"] = replacement
    try:
        yield
    finally:
        for owner in owners:
            owner.__dict__["scheduler"] = own


def _owners(pipe: Any) -> list[Any]:
    """The pipeline and, if it is a combined one, the stages inside it that step its main scheduler.

    The prior of a combined pipeline has a scheduler of its own kind and keeps it.
    """
    return [owner for owner in pipelines_of(pipe) if getattr(owner, "scheduler", None) is pipe.scheduler]


def make(scheduler: Any, solver: str) -> Any:
    """The solver's scheduler, with the configuration of a scheduler."""
    import diffusers

    changes = {}
    if is_flow_matching(scheduler):
        shift = scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0))
        changes = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return getattr(diffusers, CLASSES[solver]).from_config(scheduler.config, **changes)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether the model predicts a flow, by the scheduler's class or configuration."""
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas", False))


def obstacle(pipe: Any, solver: str) -> str:
    """Why the pipeline cannot sample with the solver, or ""."""
    flow = is_flow_matching(pipe.scheduler)
    if reason := (_flow_obstacle if flow else _noise_obstacle)(pipe.scheduler, solver):
        return reason
    return next((reason for owner in _owners(pipe) if (reason := _call_obstacle(owner, solver))), "")


def _flow_obstacle(scheduler: Any, solver: str) -> str:
    config = scheduler.config
    if unsupported := [name for name in SPACINGS if config.get(name)]:
        return f"it has no {unsupported[0]}=True for flow matching"
    if config.get("use_dynamic_shifting") and config.get("time_shift_type", "exponential") != "exponential":
        return f"it shifts exponentially only, not time_shift_type={config['time_shift_type']!r}"
    if config.get("shift_terminal") and solver == "dpm++":
        return "it has no shift_terminal"
    return ""


def _noise_obstacle(scheduler: Any, solver: str) -> str:
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None:
        return "the scheduler has no alphas_cumprod, so its noise schedule is of another kind"
    if not torch.allclose(torch.as_tensor(own).float(), make(scheduler, solver).alphas_cumprod.float(), atol=1e-6):
        return "it would not have the scheduler's noise schedule (alphas_cumprod)"
    return ""


def _call_obstacle(pipe: Any, solver: str) -> str:
    """What the pipeline's code asks of a scheduler. No interface declares it, so it is read from the source."""
    cls: Any = type(pipe)
    replacement, source = make(pipe.scheduler, solver), _source_of(cls)
    takes = inspect.signature(replacement.set_timesteps).parameters
    asks_sigmas = re.search(r"\bsigmas = np\.linspace", source) and "config.use_flow_sigmas" not in source
    if asks_sigmas and "sigmas" not in takes:
        return "the pipeline passes sigmas, which its set_timesteps does not take"
    if asks_sigmas and not replacement.config.get("use_flow_sigmas"):
        return "the pipeline passes sigmas, which it takes for flow matching only"
    if re.search(r"\bmu=mu\b", source) and solver == "dpm++" and not replacement.config.get("use_dynamic_shifting"):
        return "the pipeline passes mu, which it takes with use_dynamic_shifting=True only"
    if GENERATOR_IN_STEP.search(source) and "generator" not in inspect.signature(replacement.step).parameters:
        return "the pipeline passes a generator to step, which does not take it"
    if "scheduler.scale_noise(" in source and not hasattr(replacement, "scale_noise"):
        return "the pipeline adds noise to an image with scale_noise, which it does not have"
    return ""


@functools.cache
def _source_of(cls: Any) -> str:
    """The source of a pipeline's class and of its base classes, up to diffusers' common one."""
    bases = [
        base for base in cls.__mro__ if base.__name__.endswith("Pipeline") and base.__name__ != "DiffusionPipeline"
    ]
    sources = []
    for base in bases:
        try:
            sources.append(inspect.getsource(base))
        except (OSError, TypeError):  # created at run time, such as the thin subclass of an enabled pipeline
            continue
    return "\n".join(sources)
