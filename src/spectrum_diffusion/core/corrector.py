"""The correction of a sampling path at its evaluated steps, without a second evaluation."""

from __future__ import annotations

from typing import Any

import torch

from .history import memory_of
from .path import Path
from .replay import Replay, StepCall
from .summary import Trace

CHANGED = "path not corrected where the pipeline changed the latents between steps"


class Corrector:
    """Takes a scheduler's steps; at an evaluated one it first takes the steps since the last evaluated one again.

    What was extrapolated there can be interpolated now. Outputs are those of the guidance, as the scheduler is given
    them, whatever site they were forecast at.

    Args:
        scheduler: whose steps are taken.
        path: the evaluated outputs.
        trace: where is noted what could not be corrected.
    """

    def __init__(self, scheduler: Any, path: Path, trace: Trace) -> None:
        self.scheduler, self.path = scheduler, path
        self._trace = trace
        self._replay: Replay | None = Replay(scheduler) if path.gain > 0 else None

    @property
    def nbytes(self) -> int:
        """Memory of the outputs, samples and scheduler states that are kept, in bytes."""
        outputs = memory_of(tensor for feature in self.path.features for tensor in feature)
        return sum((outputs | (self._replay.memory if self._replay is not None else {})).values())

    def evaluated(self, step: int, call: StepCall) -> Any:
        """Take an evaluated step from the corrected sample; what the scheduler returns."""
        last = self.path.steps[-1] if len(self.path) else step
        output = self.path.evaluated(step, call)
        self._trace.keeps(step, self.path.finite)
        if self._replay is None:
            return call.proceed_with(output, call.sample)
        sample = self._corrected(self._replay, last, call) if step - last > 1 else call.sample
        self._replay.begin(sample)
        kept = self.path.features[-1][0] if output is call.output else None  # a copy of it
        return self._replay.take(call, output, sample, kept)

    def skipped(self, call: StepCall, output: torch.Tensor) -> Any:
        """Take a step with a forecast output, (B, …); what the scheduler returns."""
        if self._replay is None:
            return call.proceed_with(output, call.sample)
        return self._replay.take(call, output, call.sample)

    def stop(self, reason: str) -> None:
        """Correct nothing from now on."""
        if self._replay is not None:
            self._replay = None
            self._trace.note(f"path not corrected: {reason}")

    def clear(self) -> None:
        """Let go of every tensor, and begin a new path."""
        self.path.clear()
        if self._replay is not None:
            self._replay.clear()

    def _corrected(self, replay: Replay, last: int, call: StepCall) -> torch.Tensor:
        def corrected(since: int, used: torch.Tensor) -> torch.Tensor:
            return self.path.corrected(last + since, used)

        followed = replay.reaches(call)
        samples = followed.tolist() if isinstance(followed, torch.Tensor) else [followed]  # read once for the gap
        if all(samples):
            return replay.again(corrected)
        self._trace.note(CHANGED)
        if not any(samples):
            return call.sample
        # Each sample by itself: it must not matter whether another one of the batch was changed.
        return replay.again_for(torch.as_tensor(followed), call.sample, corrected)
