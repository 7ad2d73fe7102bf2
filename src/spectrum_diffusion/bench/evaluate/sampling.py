"""Draw one case with a method or with the untouched pipeline, and note what was done."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import SpectrumError
from ...handle import enable
from ..cost import Spent, watched
from ..metrics import LatentPath, latent_rmse
from .request import Case, Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...core.summary import Summary

MARKS = {"evaluated": "E", "forecast": "f", "partial": "p", "fallback": "!"}
"""Letters of the decisions; "-" is a step at which a branch made no call."""

CALLBACK = "callback_on_step_end"


class SamplingError(SpectrumError):
    """The pipeline answered with something that holds neither pictures nor frames."""


@dataclass
class Sample:
    """What one call gave.

    Attributes:
        frames: a picture is one frame.
        spent: time and memory of the call.
        steps: of the sampler.
        summary: of the method; None for the untouched pipeline.
        decisions: branch → a letter of :data:`MARKS` for each step.
        latents: after each step, (T, …) in float32; None unless asked for.
    """

    frames: list[Image]
    spent: Spent
    steps: int
    summary: Summary | None = None
    decisions: dict[str, str] = field(default_factory=dict)
    latents: np.ndarray[Any, Any] | None = None

    @property
    def evaluated(self) -> list[int]:
        return self.summary.evaluated if self.summary else list(range(self.steps))

    @property
    def nfe(self) -> int:
        return len(self.evaluated)


class Decisions:
    """What was decided at each step of each branch, as :func:`enable` tells it."""

    def __init__(self) -> None:
        self._branches: dict[str, dict[int, str]] = {}
        self._last = 0

    def note(self, step: int, branch: str, action: str, reason: str) -> None:
        if step < self._last:  # another sampling loop: the last one counts, as in the summary
            self._branches.clear()
        self._last = step
        self._branches.setdefault(branch, {})[step] = MARKS[action]

    def strings(self) -> dict[str, str]:
        """Branch → a letter for each step up to the last one."""
        return {
            branch: "".join(marks.get(step, "-") for step in range(self._last + 1))
            for branch, marks in self._branches.items()
        }


def sample(
    pipe: Any, case: Case, call: Mapping[str, Any], row: Row | None, *, path: bool = False, flops: bool = False
) -> Sample:
    """Draw a case with a row's method; with the untouched pipeline if it is None.

    Args:
        path: keep the latents after each step, where the pipeline has a callback.
        flops: count floating-point operations, which takes longer.

    Raises:
        SpectrumError: the method can't be had on this pipeline. Whatever the pipeline raises goes through.
    """
    decisions, latents = Decisions(), LatentPath()
    with ExitStack() as stack:
        handle = None
        if row is not None:
            enabled = enable(pipe, row.method, plan=row.plan, on_step=decisions.note, flops=flops, **row.options)
            handle = stack.enter_context(enabled)
        extra = {CALLBACK: latents} if path and takes_callback(pipe) else {}
        frames, spent = _drawn(pipe, case, {**call, **extra})
        summary = handle.summary() if handle else None
    steps = summary.steps if summary else _steps(pipe)
    return Sample(frames, spent, steps, summary, decisions.strings(), _stacked(latents))


def takes_callback(pipe: Any) -> bool:
    return CALLBACK in inspect.signature(type(pipe).__call__).parameters


def probe(pipe: Any, row: Row) -> dict[str, Any]:
    """The options of a row's method as it is on this pipeline, without sampling.

    Raises:
        SpectrumError: the method can't be had on this pipeline.
    """
    with enable(pipe, row.method, plan=row.plan, **row.options) as handle:
        return handle.method.options()


def _drawn(pipe: Any, case: Case, call: Mapping[str, Any]) -> tuple[list[Image], Spent]:
    # On the CPU whatever the device, so that a seed gives the same noise on every machine.
    generator = torch.Generator("cpu").manual_seed(case.seed)
    result, spent = watched(pipe, lambda: pipe(case.prompt.text, generator=generator, output_type="pil", **call))
    return _frames(result), spent


def _frames(result: Any) -> list[Image]:
    for name in ("images", "frames"):
        if (found := getattr(result, name, None)) is not None:
            first = found[0]
            return list(first) if isinstance(first, (list, tuple)) else [first]
    raise SamplingError(f"the pipeline's {type(result).__name__} holds neither pictures nor frames: use another model")


def _steps(pipe: Any) -> int:
    """Steps of the call that has just ended."""
    scheduled = len(pipe.scheduler.timesteps)
    own = getattr(pipe, "num_timesteps", None)
    return min(own, scheduled) if isinstance(own, int) and own > 0 else scheduled


def _stacked(path: LatentPath) -> np.ndarray[Any, Any] | None:
    """The latents after each step, (T, …), or None where nothing was kept or the shape changed on the way."""
    kept = [path.latents[step].numpy() for step in sorted(path.latents)]
    return np.stack(kept) if len({one.shape for one in kept}) == 1 else None


def path_rmse(latents: np.ndarray[Any, Any] | None, reference: np.ndarray[Any, Any] | None) -> list[float] | None:
    """RMSE of the latents after each step, (T,); None where the steps are not the same."""
    if latents is None or reference is None or latents.shape != reference.shape:
        return None
    pairs = zip(torch.from_numpy(latents), torch.from_numpy(reference), strict=True)
    return [latent_rmse(one, other) for one, other in pairs]
