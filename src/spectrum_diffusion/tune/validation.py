"""The validation of a plan: candidates on held-out pairs, sampled with the pipeline as users call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..handle import enable_method
from ..methods import AnyMethod, make_method
from .reference import relative_errors
from .samples import OnRun, Pair, batches, content, keywords
from .search import Schedule, cost_of, worst_tenth
from .store import Store

METHOD = "spectrum"


@dataclass(frozen=True)
class Candidate:
    """Options of ``spectrum``, and how near they come to the untouched runs.

    Attributes:
        name: how the options were made.
        options: of the method.
        evaluated: the evaluated steps.
        errors: relative squared errors of the final latents on the held-out pairs, (B,).
    """

    name: str
    options: Mapping[str, Any]
    evaluated: Schedule
    errors: NDArray[np.float64]

    @property
    def cost(self) -> float:
        return cost_of(self.errors)

    def is_as_good_as(self, other: Candidate) -> bool:
        """Whether neither the mean nor the worst tenth is worse."""
        mine, others = self._decibels(), other._decibels()
        return all(mine[name] >= others[name] for name in mine)

    def decibels(self) -> dict[str, float]:
        """Signal to error of the final latents, in dB: the mean, and that of the worst tenth. Rounded for a record."""
        return {name: round(value, 2) for name, value in self._decibels().items()}

    def _decibels(self) -> dict[str, float]:
        values = 10 * np.log10(self.errors)
        return {"mean": -float(values.mean()), "worst_tenth": -worst_tenth(values)}


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The best of those that are as good as the first, which is the default."""
    good = [candidate for candidate in candidates if candidate.is_as_good_as(candidates[0])]
    return min(good, key=lambda candidate: candidate.cost)


class Validation:
    """Measures candidates on held-out pairs.

    Args:
        pipe: the pipeline.
        pairs: B pairs that nothing is fitted to.
        size: how many of them are sampled at once.
        call: further arguments of the pipeline's call.
        store: keeps what the untouched pipeline makes of them.
        on_run: called after each generation.
    """

    def __init__(
        self, pipe: Any, pairs: Sequence[Pair], size: int, call: Mapping[str, Any], store: Store, on_run: OnRun
    ) -> None:
        self.pipe, self.pairs, self.size, self.call, self.on_run = pipe, pairs, size, call, on_run
        key = {"pairs": content(pairs), "size": size}
        self.untouched: torch.Tensor = store.tensors("held-out", key, lambda: {"final": self._generated()})["final"]

    def candidate(self, name: str, options: Mapping[str, Any]) -> Candidate:
        """What options are worth."""
        return self.measured(name, make_method(METHOD, **options), options)

    def measured(self, name: str, method: AnyMethod, options: Mapping[str, Any] | None = None) -> Candidate:
        """What a method is worth; without options, those of its evaluated steps."""
        with enable_method(self.pipe, method) as handle:
            final, evaluated = self._generated(), tuple(handle.summary().evaluated)
        errors = relative_errors(final, self.untouched)
        return Candidate(name, {"evaluated": list(evaluated)} if options is None else options, evaluated, errors)

    def _generated(self) -> torch.Tensor:
        """What the pipeline, as it is now, returns for the pairs, float32, (B, …)."""
        results = []
        for batch in batches(self.pairs, self.size):
            results.append(_tensor(self.pipe(**keywords(self.pipe, batch, self.call))))
            self.on_run("validation")
        return torch.cat(results)


def _tensor(result: Any) -> torch.Tensor:
    """What a pipeline returned, float32, (B, …)."""
    values = result[0] if isinstance(result, tuple) else next(iter(result.values()))
    if isinstance(values, torch.Tensor):
        return values.float().cpu()
    return torch.stack([torch.as_tensor(np.asarray(value, dtype=np.float32)) for value in values])
