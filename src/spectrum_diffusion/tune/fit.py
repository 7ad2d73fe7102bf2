"""The weights of a plan, fitted in closed form on the path that they lead to.

At each step t the sample x_t is where the weights so far have led it, and the reference is at X_(t+1) afterwards. The
output that would bring the sample there is y = (X_(t+1) − a)/c, since the scheduler answers a + c·v to an output v. It
is regressed on the outputs evaluated so far, A: K numbers for all samples together, or K for each guidance branch,

    w = w₀ + (G + λ tr(G)/K · I)⁻¹ g,   G = Σ_b ⟨A, A⟩/s_b²,   g = Σ_b ⟨A, y − w₀A⟩/s_b²,

where s_b is the norm of the sample's outputs, and w₀ what is done without a plan: the line through the last two outputs
at a skipped step, the output itself at an evaluated one. The next step starts where w leads, so that later weights mend
what earlier ones leave, and those of an evaluated step correct the gap before it.

A search must not judge a schedule by the samples that its weights were fitted to, or it finds schedules that suit these
alone. So every other pair can be held out of the sums, and is only led by the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.forecast import Weights
from ..core.history import Feature, weighted_sum
from ..core.planned import along_line
from ..core.replay import StepCall
from .driven import ScheduledPath, Session, preview
from .guidance import ONE_BRANCH
from .reference import Reference

ALL = slice(None)
SWEEPS = 3
"""Passes over the batches where the pairs do not fit into one. Each step's weights depend on the weights before it."""


@dataclass
class PrefixState:
    """What follows from the steps evaluated so far, whatever is evaluated afterwards.

    Attributes:
        outputs: those of the last of them: the guided one, or one for each branch, (B, …).
        gram: inner products of all their outputs, (K, K).
        rows: weights at the steps from the last of them on.
    """

    outputs: Feature
    gram: NDArray[np.float64]
    rows: dict[int, Weights] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


class PrefixCache:
    """States by the steps evaluated so far, so that schedules with a common prefix share its denoiser calls.

    Args:
        limit: bytes of outputs that are kept; those used least recently go first.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._states: dict[tuple[int, ...], PrefixState] = {}

    def get(self, prefix: tuple[int, ...]) -> PrefixState | None:
        state = self._states.pop(prefix, None)
        if state is not None:
            self._states[prefix] = state  # the latest
        return state

    def put(self, prefix: tuple[int, ...], state: PrefixState) -> None:
        self._states[prefix] = state
        held = sum(state.nbytes for state in self._states.values())
        for oldest in list(self._states):
            if held <= self._limit:
                return
            held -= self._states.pop(oldest).nbytes


class NormalEquations:
    """The normal equations of every step, summed over batches."""

    def __init__(self, ridge: float) -> None:
        self.ridge = ridge
        self._parts: dict[int, dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}

    def solved(self, step: int, batch: int, gram: NDArray[np.float64], right: NDArray[np.float64]) -> Weights:
        """What is added to w₀ at a step, with the part of a batch renewed, (K,)."""
        parts = self._parts.setdefault(step, {})
        parts[batch] = (gram, right)
        G, g = (np.sum(terms, axis=0) for terms in zip(*parts.values(), strict=True))
        count = len(g)
        return np.linalg.solve(G + (self.ridge * np.trace(G) / count + 1e-30) * np.eye(count), g)


class FittingPath(ScheduledPath):
    """Fits the weights of a schedule while a batch of the reference's pairs is sampled.

    Args:
        schedule: the evaluated steps.
        reference: the untouched run of the same pairs.
        equations: the normal equations, to which other batches may have contributed.
        batch: which batch it is.
        cache: what is known of schedules with the same beginning. Only of use where all pairs are one batch.
        coefficients: what guidance multiplies each branch by, if branches are told apart, (branches,).
        fitted: which of the pairs are fitted to.
    """

    def __init__(
        self,
        schedule: Sequence[int],
        reference: Reference,
        equations: NormalEquations,
        batch: int = 0,
        cache: PrefixCache | None = None,
        coefficients: Sequence[float] = ONE_BRANCH,
        fitted: slice = ALL,
    ) -> None:
        super().__init__(schedule, reference.steps)
        self._coefficients, self._pairs = coefficients, fitted
        self._reference, self._equations, self._batch = reference, equations, batch
        self._cache = cache if cache is not None else PrefixCache()
        self._prefix: tuple[int, ...] = ()
        self._states: list[PrefixState] = []
        self.rows: list[Weights] = []

    def knows(self, step: int) -> bool:
        return self._cache.get((*self._prefix, step)) is not None

    def observe(self, step: int, call: StepCall) -> None:
        self._prefix = (*self._prefix, step)
        state = self._cache.get(self._prefix)
        if state is None:
            outputs = (call.output,) if len(self._coefficients) == 1 else call.branches
            kept = tuple(output.detach().float().clone() for output in outputs)
            state = PrefixState(kept, self._gram(kept))
            self._cache.put(self._prefix, state)
        self._states.append(state)

    def given(self, step: int, call: StepCall) -> torch.Tensor:
        rows = self._states[-1].rows
        if step not in rows:
            rows[step] = self._fitted(step, call)
        self.rows.append(rows[step])
        return weighted_sum(rows[step], self._outputs)

    def errors(self) -> NDArray[np.float64]:
        """Relative squared errors of the final latents, (B,)."""
        assert self.final is not None
        return self._reference.errors(self.final)

    @property
    def _outputs(self) -> list[torch.Tensor]:
        return [output for state in self._states for output in state.outputs]

    def _fitted(self, step: int, call: StepCall) -> Weights:
        prior = np.array(along_line(self._prefix, step, self._coefficients))
        factor = self._reference.factors[step]
        if (len(self._prefix) == 1 and step in self.schedule) or abs(factor) < 1e-9:
            return prior
        wanted = self._reference.latents[step + 1].to(call.sample.device)
        missing = (wanted - preview(call, weighted_sum(prior, self._outputs))) / factor  # y − w₀A, (B, …)
        right = np.array([self._inner(output, missing) for output in self._outputs])
        return prior + self._equations.solved(step, self._batch, self._states[-1].gram, right)

    def _gram(self, latest: Feature) -> NDArray[np.float64]:
        """Inner products of all outputs so far with each other, from those before, (K, K)."""
        outputs = [*self._outputs, *latest]
        gram = np.empty((len(outputs), len(outputs)))
        before = len(outputs) - len(latest)
        if before:
            gram[:before, :before] = self._states[-1].gram
        for place, output in enumerate(latest, before):
            gram[place] = gram[:, place] = [self._inner(output, other) for other in outputs]
        return gram

    def _inner(self, first: torch.Tensor, second: torch.Tensor) -> float:
        """Σ_b ⟨first, second⟩/s_b² over the pairs that are fitted to."""
        fitted = self._pairs
        products = (first[fitted].flatten(1) * second[fitted].flatten(1)).sum(1).double().cpu()  # (B,)
        return float((products / self._reference.scale[fitted].double().square()).sum())


@dataclass(frozen=True)
class Fitted:
    """A schedule with its weights, and the errors of the pairs: of those held out, if there are some."""

    schedule: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    errors: NDArray[np.float64]


def fit(
    session: Session,
    schedule: Sequence[int],
    references: Sequence[Reference],
    ridge: float,
    cache: PrefixCache | None = None,
    coefficients: Sequence[float] = ONE_BRANCH,
    *,
    hold_out: bool = False,
) -> Fitted:
    """The weights of a schedule, fitted to the references.

    With the coefficients of several guidance branches, each branch has weights of its own. If the pairs are one batch,
    one pass is enough. Of several batches each pass renews the part of every batch in the normal equations, at the
    samples to which the weights of that time lead it.

    Args:
        session: of the pipeline.
        schedule: the evaluated steps.
        references: untouched runs, a batch each.
        ridge: λ.
        cache: what is known of schedules with the same beginning and the same other arguments.
        coefficients: what guidance multiplies each branch by, if branches are told apart, (branches,).
        hold_out: fit to every other pair, beginning with the first, and give the errors of the others.
    """
    equations = NormalEquations(ridge)
    together = cache if len(references) == 1 else None
    halves = [_halves(start) if hold_out else (ALL, ALL) for start in _starts(references)]
    paths: list[FittingPath] = []
    for _ in range(1 if len(references) == 1 else SWEEPS):
        paths.clear()
        for batch, reference in enumerate(references):
            path = FittingPath(schedule, reference, equations, batch, together, coefficients, halves[batch][0])
            session.run(reference.pairs, path)
            paths.append(path)
    errors = np.concatenate([path.errors()[judged] for path, (_, judged) in zip(paths, halves, strict=True)])
    rows = tuple(tuple(float(f"{weight:.9g}") for weight in row) for row in paths[-1].rows)
    return Fitted(tuple(sorted(schedule)), rows, errors)


def _starts(references: Sequence[Reference]) -> Iterator[int]:
    """The number of each batch's first pair."""
    return itertools.accumulate((len(reference.pairs) for reference in references[:-1]), initial=0)


def _halves(start: int) -> tuple[slice, slice]:
    """The pairs with even numbers and those with odd ones, in a batch whose first one has the number ``start``."""
    return slice(start % 2, None, 2), slice(1 - start % 2, None, 2)
