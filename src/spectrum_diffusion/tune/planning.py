"""A plan for ``spectrum``: untouched runs, a searched schedule, fitted weights, and a validation that may reject it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.schedule import at_most, check_integer, check_number
from ..core.words import unknown_choice
from ..errors import InvalidOptionError
from ..handle import disable, enable_method
from ..keys import SHARED, code_of_modules, environment, fingerprint, plain
from ..methods import make_method
from ..methods.rows import Rows, check_rows
from ..plan import Plan, versions
from .driven import Driven, Session
from .fit import PrefixCache, fit
from .guidance import ONE_BRANCH
from .reference import first, sample_references
from .samples import OnRun, Prompt, Samples, content, split
from .search import Limits, Schedule, ScheduleSearch, cost_of, symmetric
from .store import Store
from .strategies import STRATEGIES, found_by
from .strategies.calibration import Calibration
from .validation import METHOD, Candidate, Validation, best_of

CODE = (*SHARED, "methods/*.py", "tune/*.py", "tune/strategies/*.py")
"""The files that what is kept depends on."""
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
        held_out: pairs to validate on.
        batch: most pairs that are sampled at once; None tries all, and fewer if that fails.
        limits: of the search, for each number of evaluations.
    """

    pairs: int = 24
    held_out: int = 16
    batch: int | None = None
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def checked(cls, pairs: int, held_out: int, batch: int | None, runs: int, seconds: float | None) -> Effort:
        """The effort with these numbers, or :class:`InvalidOptionError`."""
        return cls(
            pairs=check_integer("pairs", pairs, least=1),
            held_out=check_integer("held_out", held_out, least=1),
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
    pairs: int = Effort.pairs,
    held_out: int = Effort.held_out,
    batch: int | None = None,
    runs: int = Limits.runs,
    seconds: float | None = None,
    folder: str | Path | None = None,
    strategy: str = METHOD,
) -> list[Plan]:
    """Make a plan for ``spectrum``: a schedule searched in closed loop, and weights fitted on the path it leads to.

    A plan is kept if it is at least as good as the default on held-out pairs, in the mean and in the worst tenth. Else
    the default is what the plan says, and its record says so.

    Args:
        pipe: a diffusers pipeline.
        method: "spectrum".
        prompts: texts; or, for pipelines that need more, keyword arguments of their call.
        nfe: wanted numbers of evaluations.
        speedup: steps / evaluations, for one more plan.
        seeds: one seed, from which those of the pairs count up.
        call: further keyword arguments of the pipeline's call.
        on_run: called with what was done.
        pairs: pairs of prompt and seed to fit to.
        held_out: pairs to validate on.
        batch: most pairs that are sampled at once.
        runs: schedules that the search tries, for each number of evaluations.
        seconds: time after which a search ends. The result then depends on the machine.
        folder: where untouched runs and tried schedules are kept, so that the same call goes on after an interruption.
            Other weights, schedulers, calls, versions or machines never share what is kept.
        strategy: "spectrum"; or the calibrated method of others to compare with, a name of :data:`STRATEGIES`, whose
            schedule and weights the plan has then, be they better than the default or not.

    Raises:
        InvalidOptionError: a wrong option, or an ``nfe`` that the default cannot have.
        UnsupportedModelError: no plan can be fitted to this pipeline.
    """
    if strategy not in (METHOD, *STRATEGIES):
        raise InvalidOptionError(unknown_choice(f"strategy={strategy!r}", strategy, (METHOD, *STRATEGIES)))
    samples = Samples(prompts=prompts, seeds=seeds, call=call or {})
    if len(samples.seeds) > 1:
        raise InvalidOptionError(
            f"seeds={list(samples.seeds)} are several, but a plan counts the seeds of its pairs up from one: pass that "
            "one, and the number of pairs as pairs=…"
        )
    effort = Effort.checked(pairs, held_out, batch, runs, seconds)
    factor = None if speedup is None else check_number("speedup", speedup, least=1.0)
    disable(pipe)
    with torch.no_grad():
        tuner = PlanTuner(pipe, samples, effort, on_run, _store(pipe, samples, folder), strategy)
        # All are refused before the first is searched.
        defaults = [tuner.default(count) for count in nfe]
        if factor is not None:
            defaults.append(tuner.default_at(factor))
        return [tuner.plan(default) for default in defaults]


def _store(pipe: Any, samples: Samples, folder: str | Path | None) -> Store:
    """What is kept in the folder, for this pipeline and call on this machine."""
    if folder is None:
        return Store(None, {})
    made_by = {"pipeline": fingerprint(pipe), "environment": environment(pipe), "call": plain(samples.call)}
    return Store(Path(folder), {**made_by, "versions": versions(), "code": code_of_modules(shared=CODE)})


class PlanTuner:
    """Makes plans for one pipeline. It samples the pairs untouched first.

    Args:
        pipe: the pipeline, without an enabled method.
        samples: prompts, seed and arguments of the call.
        effort: how much a plan may cost.
        on_run: called with what was done.
        store: keeps untouched runs, weights, and costs of schedules.
        strategy: how schedule and weights are found.
    """

    def __init__(
        self, pipe: Any, samples: Samples, effort: Effort, on_run: OnRun, store: Store, strategy: str = METHOD
    ) -> None:
        self.pipe, self.samples, self.effort, self.on_run, self.store = pipe, samples, effort, on_run, store
        self.strategy = strategy
        self.fitted, self.held_out = split(samples.prompts, samples.seeds[0], effort.pairs, effort.held_out)
        keep_outputs = strategy != METHOD
        self.untouched = sample_references(
            pipe, self.fitted, samples.call, store, on_run, batch=effort.batch, keep_outputs=keep_outputs
        )
        self.references = self.untouched.references
        self.coefficients = self.references[0].coefficients
        self.validation = Validation(pipe, self.held_out, self.untouched.batch, samples.call, store, on_run)

    @property
    def steps(self) -> int:
        return self.references[0].steps

    def default(self, count: int) -> Candidate:
        """What ``spectrum`` does without a plan, on the held-out pairs."""
        if count > self.steps:
            raise InvalidOptionError(f"nfe={count} is more than the {self.steps} steps of the run: pass fewer")
        try:
            return self.default_at(self.steps / count)
        except InvalidOptionError as error:
            raise InvalidOptionError(f"nfe={count} of {self.steps} steps is out of reach: {error}") from None

    def default_at(self, speedup: float) -> Candidate:
        """Likewise, by steps / evaluations."""
        count = at_most(self.steps, speedup)
        default = self.validation.measured("default", make_method(METHOD, speedup=speedup))
        if len(default.evaluated) != count:
            raise InvalidOptionError(
                f"{METHOD} evaluates {len(default.evaluated)} of {self.steps} steps then, not {count}"
            )
        return default

    def plan(self, default: Candidate) -> Plan:
        """The best of the default and what was fitted and found; or what a strategy of others finds."""
        if self.strategy != METHOD:
            return self._by_strategy(default)
        start, even = default.evaluated, symmetric(self.steps, len(default.evaluated))
        with self._session() as session:
            best, search = self._searched(session, [start, even])
            schedules = {"searched": best, "default": start, "symmetric": even}
            options = {
                config.name: _options(config.schedule, self._fitted(session, config))
                for config in _configs(schedules, self.coefficients)
            }
        options["searched schedule, default rule"] = {"evaluated": list(best)}
        tried = [default, *(self.validation.candidate(name, values) for name, values in options.items())]
        return self._written(best_of(tried), tried, search)

    def _by_strategy(self, default: Candidate) -> Plan:
        count = len(default.evaluated)
        with self._session() as session:
            calibration = Calibration(
                session=session,
                references=self.references,
                count=count,
                limits=self.effort.limits,
                seed=self.samples.seeds[0],
                on_tried=self._on_tried(count),
            )
            options = _options(*found_by(self.strategy)(calibration))
        candidate = self.validation.candidate(self.strategy, options)
        return self._written(candidate, [default, candidate], {})

    def _on_tried(self, count: int) -> Callable[[int, float], None]:
        return lambda tried, left: self.on_run(f"search for {count} evaluations, {_time(left)} left")

    def _fitted(self, session: Session, config: FitConfig) -> Rows:
        """The weights of a schedule, fitted to all pairs."""
        schedule, ridge, coefficients = config.schedule, config.ridge, config.coefficients
        pairs = [content(reference.pairs) for reference in self.references]
        key = {"pairs": pairs, "schedule": schedule, "ridge": ridge, "coefficients": coefficients}

        def rows() -> dict[str, Any]:
            weights = fit(session, schedule, self.references, ridge, coefficients=coefficients).rows
            self.on_run("fit")
            return {"rows": [list(row) for row in weights]}

        return check_rows(self.store.tensors("fit", key, rows)["rows"], schedule)

    def _searched(self, session: Session, starts: Sequence[Schedule]) -> tuple[Schedule, dict[str, Any]]:
        """The best schedule for this number of evaluations, and what the search did."""
        count, references, cache = len(starts[0]), first(self.references, SEARCHED_PAIRS), PrefixCache()
        key = {"pairs": [content(reference.pairs) for reference in references], "ridge": RIDGES[0]}
        costs = self.store.costs(f"search-{count}", key)
        hold_out = len(self.fitted) > 1

        def fitted_cost(schedule: Schedule) -> float:
            fitted = fit(session, schedule, references, RIDGES[0], cache, self.coefficients, hold_out=hold_out)
            return cost_of(fitted.errors)

        def cost(schedule: Schedule) -> float:
            return costs.of(schedule, fitted_cost)

        search = ScheduleSearch(cost, self.steps, self.effort.limits, self.samples.seeds[0], self._on_tried(count))
        best = search.best(starts)
        return best, {"tried": len(search.tried), "cost": search.tried[best], "start_cost": search.tried[starts[0]]}

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with enable_method(self.pipe, Driven()) as handle:
            yield Session(self.pipe, handle, self.samples.call)

    def _written(self, best: Candidate, tried: Sequence[Candidate], search: Mapping[str, Any]) -> Plan:
        count = len(best.evaluated)
        measured = [{"options": candidate.name, **candidate.decibels()} for candidate in tried]
        record = {
            "conditions": self.untouched.conditions,
            "batch": self.untouched.batch,
            "steps": self.steps,
            "wanted_nfe": count,
            "nfe": count,
            "chosen": best.name,
            "validation": {"measure": "signal to error of the final latents, dB", "rows": measured},
            "search": dict(search),
            "versions": versions(),
            "provenance": {
                "fitted": [pair.to_dict() for pair in self.fitted],
                "held_out": [pair.to_dict() for pair in self.held_out],
                "call": plain(self.samples.call),
            },
        }
        return Plan(method=METHOD, options=dict(best.options), model=self.untouched.model, record=record)


@dataclass(frozen=True)
class FitConfig:
    """What is fitted to all pairs, and validated.

    Attributes:
        name: for the plan's record.
        schedule: the evaluated steps.
        ridge: λ.
        coefficients: what guidance multiplies each branch by, if branches get weights of their own.
    """

    name: str
    schedule: Schedule
    ridge: float
    coefficients: Sequence[float]


def _configs(schedules: Mapping[str, Schedule], coefficients: Sequence[float]) -> Iterator[FitConfig]:
    """Each schedule once, with each ridge, and with weights for each branch or for the guided output."""
    names: dict[Schedule, str] = {}
    for name, schedule in schedules.items():
        names.setdefault(schedule, name)
    ways = {", per-branch weights": coefficients, "": ONE_BRANCH} if len(coefficients) > 1 else {"": ONE_BRANCH}
    for (schedule, name), ridge, (way, of_way) in itertools.product(names.items(), RIDGES, ways.items()):
        yield FitConfig(f"{name} schedule, ridge {ridge:g}{way}", schedule, ridge, of_way)


def _options(schedule: Schedule, rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {"site": "sampler", "evaluated": list(schedule), "step_weights": [list(row) for row in rows]}


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
