"""Untouched runs, and what a fit needs of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.replay import StepCall
from ..core.words import reason_of
from ..errors import InvalidOptionError, UnsupportedModelError
from ..handle import enable_method
from .driven import Driven, DrivenPath, Session, kind_of, preview
from .guidance import ONE_BRANCH, Guidance
from .samples import OnRun, Pair, batches, content
from .store import Store

AFFINE = 1e-3
"""Largest relative deviation of a scheduler's answer from one that is affine in the output."""


@dataclass(frozen=True)
class Reference:
    """Untouched runs of some pairs that were sampled together.

    Attributes:
        pairs: B pairs.
        latents: the sample before each step and after the last, float32 on the CPU, T + 1 of (B, …).
        factors: how far each step moves the sample for a unit of the output, (T,).
        scale: mean norm of each sample's outputs, float32, (B,).
        coefficients: what guidance multiplies each branch by, (branches,); 1 where branches can't be told apart.
        outputs: the output of each step, where they are kept, T of (B, …).
    """

    pairs: Sequence[Pair]
    latents: Sequence[torch.Tensor]
    factors: Sequence[float]
    scale: torch.Tensor
    coefficients: Sequence[float] = ONE_BRANCH
    outputs: Sequence[torch.Tensor] = ()

    @classmethod
    def read(cls, pairs: Sequence[Pair], values: Mapping[str, Any]) -> Reference:
        """What :meth:`to_dict` gave."""
        latents, factors, coefficients, outputs = (
            list(values[name]) for name in ("latents", "factors", "coefficients", "outputs")
        )
        return cls(pairs, latents, factors, values["scale"], coefficients, outputs)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and numbers, to be kept."""
        return {
            "latents": torch.stack(list(self.latents)),
            "factors": list(self.factors),
            "scale": self.scale,
            "coefficients": list(self.coefficients),
            "outputs": list(self.outputs),
        }

    @property
    def steps(self) -> int:
        return len(self.factors)

    def first(self, count: int) -> Reference:
        """The runs of the first ``count`` pairs."""
        latents, outputs = ([tensor[:count] for tensor in tensors] for tensors in (self.latents, self.outputs))
        return Reference(self.pairs[:count], latents, self.factors, self.scale[:count], self.coefficients, outputs)

    def errors(self, final: torch.Tensor) -> NDArray[np.float64]:
        """Squared error of final latents relative to the reference's, (B,)."""
        return relative_errors(final, self.latents[-1])


def relative_errors(final: torch.Tensor, wanted: torch.Tensor) -> NDArray[np.float64]:
    """Squared error of each sample relative to what is wanted, float64, (B,)."""
    wanted = wanted.flatten(1)
    missed = (final.cpu().float().flatten(1) - wanted).square().sum(1)
    return np.asarray((missed / wanted.square().sum(1).clamp_min(1e-12)).clamp_min(1e-12).double())


def first(references: Sequence[Reference], count: int) -> list[Reference]:
    """The references of the first ``count`` pairs."""
    kept: list[Reference] = []
    for reference in references:
        if count > 0:
            kept.append(reference.first(count))
            count -= len(reference.pairs)
    return kept


@dataclass(frozen=True)
class Untouched:
    """The untouched runs of a calibration.

    Attributes:
        model: the kind of the denoisers.
        conditions: what they ran under, as a plan records it.
        references: the runs, a batch each.
        batch: how many pairs were sampled at once.
    """

    model: str
    conditions: Mapping[str, Any]
    references: Sequence[Reference]
    batch: int


class Recorder(DrivenPath):
    """Evaluates every step, and records the path."""

    def __init__(self, samples: int, keep_outputs: bool) -> None:
        super().__init__()
        self._samples, self._keeps = samples, keep_outputs
        self.outputs: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []
        self.factors: list[float] = []
        self._norms: list[torch.Tensor] = []
        self._guidance = Guidance()

    def evaluates(self, step: int) -> bool:
        return True

    def evaluated(self, step: int, call: StepCall) -> torch.Tensor:
        norms = _norms(step, call.output)
        if not self.steps:
            self._check(call)
        self.steps.append(step)
        after = preview(call, call.output)
        self.factors.append(_factor(call, after))
        # A copy, because pipelines may write into the sample between steps.
        self.latents[-1:] = [call.sample.detach().float().cpu().clone(), after.cpu()]
        if self._keeps:
            self.outputs.append(call.output.float().cpu().clone())
        self._guidance.observe(call.branches, call.output)
        self._norms.append(norms)
        return call.output

    def result(self, pairs: Sequence[Pair]) -> Reference:
        scale = torch.stack(self._norms).mean(0)
        return Reference(pairs, self.latents, self.factors, scale, self._guidance.coefficients, self.outputs)

    def _check(self, call: StepCall) -> None:
        if call.sample.shape[0] != self._samples:
            remedy = "sample one pair at a time, with batch=1" if self._samples > 1 else "make one sample in each call"
            raise UnsupportedModelError(
                f"the scheduler is given {call.sample.shape[0]} latents for {self._samples} samples, so they can't be "
                f"told apart: {remedy}"
            )
        if not torch.equal(preview(call, call.output), preview(call, call.output)):
            raise UnsupportedModelError(
                f"{type(call.scheduler).__name__} adds noise at each step, which no plan can foresee: use a "
                "deterministic scheduler"
            )


def record(session: Session, pairs: Sequence[Pair], *, keep_outputs: bool = False) -> Reference:
    """The untouched run of some pairs that fit into the memory together."""
    recorder = Recorder(len(pairs), keep_outputs)
    session.run(pairs, recorder)
    return recorder.result(pairs)


def sample_references(
    pipe: Any,
    pairs: Sequence[Pair],
    call: Mapping[str, Any],
    store: Store,
    on_run: OnRun,
    *,
    batch: int | None = None,
    keep_outputs: bool = False,
) -> Untouched:
    """Sample pairs untouched, in batches that fit into the memory and that the pipeline takes.

    Args:
        pipe: the pipeline.
        pairs: what is sampled.
        call: further arguments of the pipeline's call.
        store: keeps the runs.
        on_run: called with what was done, and with the reason for smaller batches.
        batch: most pairs that are sampled at once; None tries all, half of them while the memory is too small, and
            single ones if the pipeline takes no list of them.
        keep_outputs: keep the outputs of all steps.
    """

    def sampled(session: Session, part: Sequence[Pair]) -> dict[str, Any]:
        values = record(session, part, keep_outputs=keep_outputs).to_dict()
        assert session.handle.conditions is not None
        on_run("reference")
        return {**values, "conditions": json.dumps(session.handle.conditions.to_dict())}

    def batched(session: Session, size: int) -> Untouched:
        references = []
        for part in batches(pairs, size):
            key = {"pairs": content(part), "outputs": keep_outputs}
            values = store.tensors("reference", key, functools.partial(sampled, session, part))
            references.append(Reference.read(part, values))
        conditions = json.loads(values["conditions"])
        return Untouched(kind_of(session.handle), conditions, references, len(references[0].pairs))

    size = batch or len(pairs)
    with enable_method(pipe, Driven()) as handle:
        session = Session(pipe, handle, call)
        while True:
            try:
                return batched(session, size)
            except (torch.OutOfMemoryError, ValueError, TypeError) as error:
                # A pipeline may take no list of prompts, or loop over it; another refusal comes back without one.
                if size == 1 or batch is not None or isinstance(error, InvalidOptionError):
                    raise
                size = size // 2 if isinstance(error, torch.OutOfMemoryError) else 1
                on_run(f"batches of {size}, because: {reason_of(error)}")


def _norms(step: int, output: torch.Tensor) -> torch.Tensor:
    """The norm of each sample's output, float32, (B,).

    Raises:
        UnsupportedModelError: one of them is not a number.
    """
    norms = output.float().flatten(1).norm(dim=1).cpu()
    if not torch.isfinite(norms).all():
        raise UnsupportedModelError(
            f"the untouched run has NaN, infinite or huge outputs at step {step}, to which nothing can be fitted: mend "
            "it first, for example with another dtype"
        )
    return norms


def _factor(call: StepCall, after: torch.Tensor) -> float:
    """How far the scheduler moves the sample for a unit of the output.

    Raises:
        UnsupportedModelError: its answer is not affine in the output.
    """
    output = call.output.float()
    moved = preview(call, 2 * output) - after
    factor = float((moved * output).double().sum() / output.square().double().sum().clamp_min(1e-30))
    if float((moved - factor * output).norm()) > AFFINE * float(moved.norm()) + 1e-5 * float(after.norm()):
        raise UnsupportedModelError(
            f"{type(call.scheduler).__name__} does not answer in proportion to the denoiser's output, as where it "
            "clips or thresholds: no plan can be fitted; set clip_sample=False and thresholding=False"
        )
    return factor
