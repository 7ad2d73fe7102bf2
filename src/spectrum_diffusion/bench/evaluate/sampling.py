"""Runs one case with a method or with the untouched pipeline, and records the decisions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...core.run import OnStep
from ...core.signatures import call_parameters
from ...errors import UnsupportedModelError
from ...handle import enable
from ..cost import Spent, watched
from ..images import with_image
from ..metrics import LatentPath, latent_rmse
from .request import Case, Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...core.summary import Action, Summary

log = logging.getLogger(__name__)

MARKS = {"evaluated": "E", "forecast": "f", "partial": "p", "fallback": "!"}
"""Letters of the decisions; "-" marks a step without a call of the branch."""

CALLBACK = "callback_on_step_end"


@dataclass
class Sample:
    """The output of one call.

    Attributes:
        frames: the frames of a video, or one image.
        spent: time and memory of the call.
        steps: number of sampler steps.
        summary: the method's summary; None for the untouched pipeline.
        decisions: branch → a letter of :data:`MARKS` for each step.
        latents: after each step, (T, …) in float32; None unless requested.
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
    """The decision at each step of each branch, reported by :func:`enable`; ``then`` is told too."""

    def __init__(self, then: OnStep | None = None) -> None:
        self._branches: dict[str, dict[int, str]] = {}
        self._last = 0
        self._then = then

    def note(self, step: int, branch: str, action: Action, reason: str) -> None:
        log.debug("step %d, branch %s: %s %s", step, branch, action, reason)
        if step < self._last:  # a new sampling loop: only the last one counts, as in the summary
            self._branches.clear()
        self._last = step
        self._branches.setdefault(branch, {})[step] = MARKS[action]
        if self._then is not None:
            self._then(step, branch, action, reason)

    def strings(self) -> dict[str, str]:
        """Branch → one letter per step."""
        return {
            branch: "".join(marks.get(step, "-") for step in range(self._last + 1))
            for branch, marks in self._branches.items()
        }


def sample(
    pipe: Any,
    case: Case,
    call: Mapping[str, Any],
    row: Row | None,
    *,
    path: bool = False,
    flops: bool = False,
    on_step: OnStep | None = None,
) -> Sample:
    """Run a case with a row's method, or with the untouched pipeline if ``row`` is None.

    Args:
        path: keep the latents after each step, if the pipeline has a callback.
        flops: count floating-point operations, which takes longer.
        on_step: called after each denoiser call of a method, as :func:`enable` does.

    Raises:
        SpectrumError: the pipeline does not support the method. Exceptions of the pipeline are not caught.
    """
    decisions, latents = Decisions(on_step), LatentPath()
    with ExitStack() as stack:
        handle = None
        if row is not None:
            enabled = enable(pipe, row.method, plan=row.plan, on_step=decisions.note, flops=flops, **row.options)
            handle = stack.enter_context(enabled)
        takes_callback = CALLBACK in call_parameters(pipe)
        extra = {CALLBACK: latents} if path and takes_callback else {}
        frames, spent = _run(pipe, case, {**call, **extra})
        summary = handle.summary() if handle else None
    steps = summary.steps if summary else _steps(pipe)
    return Sample(frames, spent, steps, summary, decisions.strings(), _stacked(latents))


def probe(pipe: Any, row: Row) -> dict[str, Any]:
    """The options of a row's method on this pipeline, without sampling.

    Raises:
        SpectrumError: the pipeline does not support the method.
    """
    with enable(pipe, row.method, plan=row.plan, **row.options) as handle:
        return handle.method.options()


def _run(pipe: Any, case: Case, call: Mapping[str, Any]) -> tuple[list[Image], Spent]:
    # Always on the CPU, so that a seed gives the same noise on every machine.
    generator = torch.Generator("cpu").manual_seed(case.seed)
    call = with_image(pipe, call)
    result, spent = watched(pipe, lambda: pipe(case.prompt.text, generator=generator, output_type="pil", **call))
    return _frames(result), spent


def _frames(result: Any) -> list[Image]:
    for name in ("images", "frames"):
        if (outputs := getattr(result, name, None)) is not None:
            first = outputs[0]
            return list(first) if isinstance(first, (list, tuple)) else [first]
    raise UnsupportedModelError(
        f"the pipeline returned {type(result).__name__} without images or frames: use another model"
    )


def _steps(pipe: Any) -> int:
    """Number of steps of the last call."""
    scheduled = len(pipe.scheduler.timesteps)
    own = getattr(pipe, "num_timesteps", None)
    return min(own, scheduled) if isinstance(own, int) and own > 0 else scheduled


def _stacked(path: LatentPath) -> np.ndarray[Any, Any] | None:
    """The latents after each step, (T, …); None if nothing was kept or the shape changed."""
    kept = [path.latents[step].numpy() for step in sorted(path.latents)]
    return np.stack(kept) if len({latents.shape for latents in kept}) == 1 else None


def path_rmse(latents: np.ndarray[Any, Any] | None, reference: np.ndarray[Any, Any] | None) -> list[float] | None:
    """RMSE of the latents after each step, (T,); None if the steps differ."""
    if latents is None or reference is None or latents.shape != reference.shape:
        return None
    pairs = zip(torch.from_numpy(latents), torch.from_numpy(reference), strict=True)
    return [latent_rmse(ours, theirs) for ours, theirs in pairs]
