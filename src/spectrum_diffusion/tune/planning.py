"""A plan for ``spectrum``: untouched runs, a searched schedule, fitted weights, and a validation that may reject it."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.schedule import at_most, check_integer, check_number
from ..core.words import unknown_choice
from ..errors import InvalidOptionError
from ..handle import enable_method
from ..methods import AnyMethod, make_method
from ..methods.rows import Rows, check_rows
from ..plan import Plan, versions
from ..sites.denoisers import identity
from .calibrate import OnRun, Samples
from .driven import Driven, Session
from .fit import Memo, fit
from .guidance import WHOLE
from .pairs import Pair, Prompt, chunks, keywords, split
from .reference import Reference, first, record
from .search import Limits, Schedule, Search, cost_of, symmetric, worst_tenth
from .store import Store
from .strategies import STRATEGIES, found_by
from .strategies.course import Course

METHOD = "spectrum"
RIDGES = (1e-4, 1e-2)
"""Strengths λ between which the validation chooses; the first is that of the search."""
SEARCHED_PAIRS = 16
"""Pairs with which schedules are compared: half of them are fitted to, and the others judge. A study of 1.37 million
schedules finds 8 enough (arXiv 2609.39343)."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a plan may cost.

    Attributes:
        pairs: pairs of prompt and seed to fit to.
        left_out: pairs to validate on.
        batch: most pairs that are sampled at once; None tries all, and halves while the memory is too small.
        limits: of the search, for each number of evaluations.
    """

    pairs: int = 24
    left_out: int = 16
    batch: int | None = None
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def checked(cls, pairs: int, left_out: int, batch: int | None, runs: int, seconds: float | None) -> Effort:
        return cls(
            pairs=check_integer("pairs", pairs, least=1),
            left_out=check_integer("left_out", left_out, least=1),
            batch=None if batch is None else check_integer("batch", batch, least=1),
            limits=Limits(
                runs=check_integer("runs", runs, least=1),
                seconds=math.inf if seconds is None else check_number("seconds", seconds, least=1.0),
            ),
        )


def tune_plan(
    pipe: Any,
    method: str,
    prompts: Sequence[Prompt],
    *,
    nfe: Iterable[int] = (),
    speedup: float | None = None,
    seeds: Sequence[int] = (0,),
    call: Mapping[str, Any] | None = None,
    on_run: OnRun = lambda _: None,
    pairs: int = 24,
    left_out: int = 16,
    batch: int | None = None,
    runs: int = 100,
    seconds: float | None = None,
    folder: str | Path | None = None,
    identity: str = "",
    strategy: str = METHOD,
) -> list[Plan]:
    """Make a plan for ``spectrum``: a schedule searched in closed loop, and weights fitted on the path it leads to.

    A plan is kept if it is at least as good as the default on pairs left out of the fit, in the mean and in the worst
    tenth. Else the default is what the plan says, and its record says so.

    Args:
        pipe: a diffusers pipeline.
        method: "spectrum".
        prompts: texts; or, for pipelines that need more, keyword arguments of their call.
        nfe: wanted numbers of evaluations.
        speedup: steps / evaluations, for one more plan.
        seeds: the first one is where the seeds of the pairs count up from.
        call: further keyword arguments of the pipeline's call.
        on_run: called with what was done.
        pairs: pairs of prompt and seed to fit to.
        left_out: pairs to validate on.
        batch: most pairs that are sampled at once.
        runs: schedules that the search tries, for each number of evaluations.
        seconds: time after which a search ends. The result then depends on the machine.
        folder: where untouched runs and tried schedules are kept, so that the same call goes on after an interruption.
        identity: what the results in ``folder`` depend on beside prompts, call and the kind of the model, such as a
            digest of the weights.
        strategy: "spectrum"; or the calibrated method of others to compare with, a name of :data:`STRATEGIES`, whose
            schedule and weights the plan has then, be they better than the default or not.

    Raises:
        InvalidOptionError: a wrong option, or an ``nfe`` that the default cannot have.
        UnsupportedModelError: no plan can be fitted to this pipeline.
    """
    if strategy not in (METHOD, *STRATEGIES):
        raise InvalidOptionError(unknown_choice(f"strategy={strategy!r}", strategy, (METHOD, *STRATEGIES)))
    samples = Samples(prompts=prompts, seeds=seeds, call=call or {})
    effort = Effort.checked(pairs, left_out, batch, runs, seconds)
    factor = None if speedup is None else check_number("speedup", speedup, least=1.0)
    made_by = {"identity": identity, "pipeline": type(pipe).__name__, "call": samples.call, "versions": versions()}
    store = Store(None if folder is None else Path(folder), made_by)
    workshop = Workshop(pipe, samples, effort, on_run, store, strategy)
    with torch.no_grad():
        workshop.sample_references()
        # All are refused before the first is searched.
        defaults = [workshop.default(count) for count in nfe]
        if factor is not None:
            defaults.append(workshop.default_at(factor))
        return [workshop.plan(default) for default in defaults]


@dataclass
class Candidate:
    """Options of ``spectrum``, and how near they come to the untouched runs.

    Attributes:
        name: how the options were made.
        options: of the method.
        errors: relative squared errors of the final latents on the pairs left out, (B,).
    """

    name: str
    options: dict[str, Any]
    errors: NDArray[np.float64]

    @property
    def cost(self) -> float:
        return cost_of(self.errors)

    def is_as_good_as(self, other: Candidate) -> bool:
        """Whether neither the mean nor the worst tenth is worse."""
        mine, others = self.decibels(), other.decibels()
        return all(mine[name] >= others[name] for name in mine)

    def decibels(self) -> dict[str, float]:
        """Signal to error of the final latents, in dB: the mean, and that of the worst tenth."""
        values = 10 * np.log10(self.errors)
        return {"mean": round(-float(values.mean()), 2), "worst_tenth": round(-worst_tenth(values), 2)}


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The best of those that are as good as the first, which is the default."""
    good = [candidate for candidate in candidates if candidate.is_as_good_as(candidates[0])]
    return min(good, key=lambda candidate: candidate.cost)


class Workshop:
    """What all plans for one pipeline share: the pairs, their untouched runs, and the effort.

    Args:
        pipe: the pipeline.
        samples: prompts, seeds and arguments of the call.
        effort: how much a plan may cost.
        on_run: called with what was done.
        store: keeps untouched runs and costs of schedules.
        strategy: how schedule and weights are found.
    """

    def __init__(self, pipe: Any, samples: Samples, effort: Effort, on_run: OnRun, store: Store, strategy: str) -> None:
        self.pipe, self.samples, self.effort, self.on_run, self.store = pipe, samples, effort, on_run, store
        self.strategy = strategy
        self.fitted, self.left_out = split(samples.prompts, samples.seeds[0], effort.pairs, effort.left_out)
        self.references: list[Reference] = []
        self.record: dict[str, Any] = {}
        self.model = ""

    def sample_references(self) -> None:
        """Sample the pairs untouched."""
        with self._session() as session:
            self.model = " + ".join(dict.fromkeys(identity(model) for model in session.handle.models))
            self.references = self._recorded(session, self.effort.batch or len(self.fitted))
        self.record["steps"] = self.steps
        key = {"model": self.model, "pairs": _shown(self.left_out), "size": self.size}
        self.wanted = self.store.tensors("left-out", key, lambda: {"final": self._generated()})["final"]

    @property
    def steps(self) -> int:
        return self.references[0].steps

    @property
    def size(self) -> int:
        """How many pairs are sampled at once."""
        return len(self.references[0].pairs)

    def default(self, count: int) -> Candidate:
        """What ``spectrum`` does without a plan, on the pairs left out."""
        if count > self.steps:
            raise InvalidOptionError(f"nfe={count} is more than the {self.steps} steps of the run: pass fewer")
        try:
            return self.default_at(self.steps / count)
        except InvalidOptionError as error:
            raise InvalidOptionError(f"nfe={count} of {self.steps} steps is out of reach: {error}") from None

    def default_at(self, speedup: float) -> Candidate:
        """Likewise, by steps / evaluations."""
        count = at_most(self.steps, speedup)
        errors, evaluated = self._tried(make_method(METHOD, speedup=speedup))
        if len(evaluated) != count:
            raise InvalidOptionError(f"{METHOD} evaluates {len(evaluated)} of {self.steps} steps then, not {count}")
        return Candidate("default", {"evaluated": evaluated}, errors)

    def plan(self, default: Candidate) -> Plan:
        """The best of the default and what was fitted and found; or what a strategy of others finds."""
        if self.strategy != METHOD:
            return self._by_strategy(default)
        count = len(default.options["evaluated"])
        start, even = tuple(default.options["evaluated"]), symmetric(self.steps, count)
        with self._session() as session:
            best, search = self._searched(session, [start, even], count)
            schedules = {"searched": best, "default": start, "symmetric": even}
            options = {
                finalist.name: _options(finalist.schedule, self._fitted(session, finalist))
                for finalist in _finalists(schedules, self.references[0].shares)
            }
        options["searched schedule, default rule"] = {"evaluated": list(best)}
        tried = [default, *(self._candidate(name, values) for name, values in options.items())]
        return self._written(best_of(tried), tried, search)

    def _by_strategy(self, default: Candidate) -> Plan:
        count = len(default.options["evaluated"])
        with self._session() as session:
            course = Course(
                session=session,
                references=self.references,
                count=count,
                limits=self.effort.limits,
                seed=self.samples.seeds[0],
                on_tried=self._on_tried(count),
            )
            options = _options(*found_by(self.strategy)(course))
        candidate = self._candidate(self.strategy, options)
        return self._written(candidate, [default, candidate], {})

    def _on_tried(self, count: int) -> Callable[[int, float], None]:
        return lambda tried, left: self.on_run(f"search for {count} evaluations, {_time(left)} left")

    def _fitted(self, session: Session, finalist: Finalist) -> Rows:
        """The weights of a schedule, fitted to all pairs."""
        schedule, ridge, shares = finalist.schedule, finalist.ridge, finalist.shares
        pairs = [_shown(reference.pairs) for reference in self.references]
        key = {"model": self.model, "pairs": pairs, "schedule": schedule, "ridge": ridge, "shares": shares}

        def rows() -> dict[str, Any]:
            weights = fit(session, schedule, self.references, ridge, shares=shares).rows
            self.on_run("fit")
            return {"rows": [list(row) for row in weights]}

        return check_rows(self.store.tensors("fit", key, rows)["rows"], schedule)

    def _searched(self, session: Session, starts: Sequence[Schedule], count: int) -> tuple[Schedule, dict[str, Any]]:
        references = first(self.references, SEARCHED_PAIRS)
        memo, shares = Memo(), references[0].shares
        pairs = [_shown(reference.pairs) for reference in references]
        leave_out = len(self.fitted) > 1
        key = {"model": self.model, "pairs": pairs, "ridge": RIDGES[0], "shares": shares, "judged": leave_out}
        costs = self.store.costs(f"search-{count}", key)

        def fitted_cost(schedule: Schedule) -> float:
            return cost_of(fit(session, schedule, references, RIDGES[0], memo, shares, leave_out=leave_out).errors)

        def cost(schedule: Schedule) -> float:
            return costs.of(schedule, fitted_cost)

        search = Search(cost, self.steps, self.effort.limits, self.samples.seeds[0], self._on_tried(count))
        best = search.best(starts)
        return best, {"tried": len(search.tried), "cost": search.tried[best], "start_cost": search.tried[starts[0]]}

    def _candidate(self, name: str, options: dict[str, Any]) -> Candidate:
        return Candidate(name, options, self._tried(make_method(METHOD, **options))[0])

    def _tried(self, method: AnyMethod) -> tuple[NDArray[np.float64], list[int]]:
        """Errors on the pairs left out, and the evaluated steps, as a user will have them."""
        with enable_method(self.pipe, method) as handle:
            final, evaluated = self._generated(), list(handle.summary().evaluated)
        wanted = self.wanted.flatten(1)
        errors = (final.flatten(1) - wanted).square().sum(1) / wanted.square().sum(1).clamp_min(1e-12)
        return np.asarray(errors.clamp_min(1e-12).double()), evaluated

    def _generated(self) -> torch.Tensor:
        """What the pipeline returns for the pairs left out, (B, …)."""
        results = []
        for part in chunks(self.left_out, self.size):
            results.append(_tensor(self.pipe(**keywords(self.pipe, part, self.samples.call))))
            self.on_run("validation")
        return torch.cat(results)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with enable_method(self.pipe, Driven()) as handle:
            yield Session(self.pipe, handle, self.samples.call)

    def _recorded(self, session: Session, size: int) -> list[Reference]:
        """The untouched runs, in batches that fit into the memory and that the pipeline takes."""
        references = []
        try:
            for part in chunks(self.fitted, size):
                key = {"model": self.model, "pairs": _shown(part), "outputs": self.strategy != METHOD}
                values = self.store.tensors("reference", key, functools.partial(self._sampled, session, part))
                references.append(Reference.read(part, values))
                self.record["conditions"] = json.loads(values["conditions"])
        except (torch.OutOfMemoryError, ValueError, TypeError) as error:
            # Not every pipeline takes lists of prompts, or of this length.
            if size == 1 or self.effort.batch is not None:
                raise
            return self._recorded(session, size // 2 if isinstance(error, torch.OutOfMemoryError) else 1)
        return references

    def _sampled(self, session: Session, pairs: Sequence[Pair]) -> dict[str, Any]:
        """The untouched run of some pairs, with the conditions that it ran under."""
        values = record(session, pairs, keep_outputs=self.strategy != METHOD).to_dict()
        assert session.handle.conditions is not None
        self.on_run("reference")
        return {**values, "conditions": json.dumps(session.handle.conditions.to_dict())}

    def _written(self, best: Candidate, tried: Sequence[Candidate], search: Mapping[str, Any]) -> Plan:
        count = len(best.options["evaluated"])
        measured = [{"options": candidate.name, **candidate.decibels()} for candidate in tried]
        record = {
            **self.record,
            "wanted_nfe": count,
            "nfe": count,
            "chosen": best.name,
            "validation": {"measure": "signal to error of the final latents, dB", "rows": measured},
            "search": dict(search),
            "versions": versions(),
            "provenance": {
                "fitted": [pair.to_dict() for pair in self.fitted],
                "left_out": [pair.to_dict() for pair in self.left_out],
                "call": dict(self.samples.call),
            },
        }
        return Plan(method=METHOD, options=best.options, model=self.model, record=record)


@dataclass(frozen=True)
class Finalist:
    """What is fitted to all pairs, and validated.

    Attributes:
        name: for the plan's record.
        schedule: the evaluated steps.
        ridge: λ.
        shares: what guidance multiplies each branch by, if branches get weights of their own.
    """

    name: str
    schedule: Schedule
    ridge: float
    shares: Sequence[float]


def _finalists(schedules: Mapping[str, Schedule], shares: Sequence[float]) -> Iterator[Finalist]:
    """Each schedule once, with each ridge, and with the branches apart and together."""
    names: dict[Schedule, str] = {}
    for name, schedule in schedules.items():
        names.setdefault(schedule, name)
    ways = {", branches apart": shares, "": WHOLE} if len(shares) > 1 else {"": WHOLE}
    for (schedule, name), ridge, (way, its_shares) in itertools.product(names.items(), RIDGES, ways.items()):
        yield Finalist(f"{name} schedule, ridge {ridge:g}{way}", schedule, ridge, its_shares)


def _options(schedule: Schedule, rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {"site": "sampler", "evaluated": list(schedule), "step_weights": [list(row) for row in rows]}


def _shown(pairs: Sequence[Pair]) -> list[Any]:
    """The pairs as they determine a result."""
    return [[str(pair.prompt), pair.seed] for pair in pairs]


def _tensor(result: Any) -> torch.Tensor:
    """What a pipeline returned, float32, (B, …)."""
    values = result[0] if isinstance(result, tuple) else next(iter(result.values()))
    if isinstance(values, torch.Tensor):
        return values.float().cpu()
    return torch.stack([torch.as_tensor(np.asarray(value, dtype=np.float32)) for value in values])


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
