"""Who does the work of an evaluation: this process, or the actors of a Ray cluster.

Actors share cases, not single units. So a method runs on the machine of its reference, as the times to compare demand,
and whatever needs the reference's frames finds them. Files are those of a local evaluation, under the same keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ...atomic import StoreError
from ...cluster import Pool
from ...cluster import Work as RowWork
from ...core.words import reason_of
from ...discovery import device_of
from ...errors import InvalidOptionError
from ..metrics import PictureJudge
from .measures import choose_metrics, unmeasured
from .request import Request
from .store import Store
from .units import WorkPlan, make_work_plan, settings_of
from .work import OnUnit, Work


class Crew(Protocol):
    """Plans and does the work of an evaluation."""

    device: str
    """Where programs may run beside it: "cuda" or "cpu"."""
    facts: dict[str, Any]
    """What the manifest says about it."""

    def plan(self, request: Request) -> WorkPlan:
        """All units of a request."""

    def work(self, plan: WorkPlan, store: Store, metrics: Mapping[str, PictureJudge], on_unit: OnUnit) -> int:
        """Do what is missing; the number of calls of the pipeline. Failures of rows are noted in the plan."""


class Here:
    """This process, with its pipeline."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.device = "cuda" if device_of(pipe).type == "cuda" else "cpu"
        self.facts: dict[str, Any] = {}

    def plan(self, request: Request) -> WorkPlan:
        return make_work_plan(self._pipe, request)

    def work(self, plan: WorkPlan, store: Store, metrics: Mapping[str, PictureJudge], on_unit: OnUnit) -> int:
        work = Work(self._pipe, plan, store, metrics, on_unit, _finished(plan, store))
        for index in range(len(plan.references)):
            work.run_case(index)
        return work.computed


class Actors:
    """The actors of a cluster, which load the pipeline themselves and see the folder under the same path."""

    def __init__(self, pool: Pool, load: Callable[[], Any]) -> None:
        self._pool, self._load = pool, load
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.facts: dict[str, Any] = {"actors": pool.size}

    def plan(self, request: Request) -> WorkPlan:
        # An actor's machine is part of the keys, and this one may lack its accelerator.
        plan: WorkPlan = self._pool.call(_planned, self._load, request)
        return plan

    def work(self, plan: WorkPlan, store: Store, metrics: Mapping[str, PictureJudge], on_unit: OnUnit) -> int:
        finished, total, computed = _finished(plan, store), len(plan.distinct), 0
        cases = [index for index in range(len(plan.references)) if _lacks(plan, index, store, metrics, finished)]
        if not cases:
            return 0
        rows = [{"index": index} for index in cases]
        on_unit(len(finished), total, f"{self._pool.size} actors load the pipeline")
        for row in self._pool.map(_working, (self._load, plan, store.folder.absolute(), tuple(metrics)), rows):
            outcome = CaseOutcome.parse(row["outcome"])
            outcome.raise_error()
            computed += outcome.computed
            for label, reason in outcome.failures.items():
                plan.failures.setdefault(label, reason)
            for label, name, problem in outcome.problems:
                plan.problems.setdefault((label, name), problem)
            finished.update(plan.of_case(outcome.index))
            on_unit(len(finished), total, plan.cases[outcome.index].prompt.text)
        return computed


@dataclass(frozen=True)
class CaseOutcome:
    """What became of a case in an actor, ready for JSON.

    Attributes:
        computed: calls of the pipeline.
        failures: label → why the row failed in this actor, up to now.
        problems: label, metric, and why the metric could not be computed.
        full: why nothing more can be written.
        error: why the untouched pipeline failed.
    """

    index: int
    computed: int
    failures: dict[str, str]
    problems: list[list[str]]
    full: str = ""
    error: str = ""

    @classmethod
    def parse(cls, text: str) -> CaseOutcome:
        return cls(**json.loads(text))

    def raise_error(self) -> None:
        """Raise what ends the evaluation, if it is to end."""
        if self.full:
            raise StoreError(self.full)
        if self.error:
            raise RuntimeError(f"the untouched pipeline failed in an actor: {self.error}")


def _finished(plan: WorkPlan, store: Store) -> set[str]:
    return {name for name, unit in plan.distinct.items() if store.record(unit)}


def _lacks(plan: WorkPlan, index: int, store: Store, metrics: Mapping[str, PictureJudge], finished: set[str]) -> bool:
    """Whether a unit or a metric of a case is missing."""
    reference, units = plan.references[index], (units[index] for units in plan.by_label.values())
    return not plan.of_case(index).keys() <= finished or any(
        unmeasured(store, unit, reference, metrics) for unit in units
    )


def _planned(load: Callable[[], Any], request: Request) -> WorkPlan:
    return make_work_plan(load(), request)


def _working(load: Callable[[], Any], plan: WorkPlan, folder: Path, metrics: tuple[str, ...]) -> RowWork:
    """The work of an actor on cases. It ends with the first failure that ends an evaluation.

    Raises:
        InvalidOptionError: this process would get other results than the one that planned, or lacks a metric.
    """
    pipe = load()
    _check_alike(plan.settings, settings_of(pipe, plan.request))
    judges = choose_metrics(replace(plan.request, metrics=metrics)).images
    work = Work(pipe, plan, Store(folder), judges, lambda done, total, what: None)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        before, ended = work.computed, {}
        try:
            work.run_case(row["index"])
        except StoreError as error:
            ended = {"full": str(error)}
        except Exception as error:  # of the untouched pipeline: any
            ended = {"error": reason_of(error)}
        problems = [[*names, problem] for names, problem in plan.problems.items()]
        outcome = CaseOutcome(row["index"], work.computed - before, plan.failures, problems, **ended)
        return {"outcome": json.dumps(vars(outcome))}

    return run


def _check_alike(planned: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise if settings differ: results of unlike machines must not mix in a row."""
    differ = {name: (own[name], value) for name, value in planned.items() if own[name] != value}
    if environments := differ.pop("environment", None):
        ours, theirs = environments
        differ |= {
            name: (ours.get(name), theirs.get(name)) for name in ours | theirs if ours.get(name) != theirs.get(name)
        }
    if differ:
        named = ", ".join(f"{name} {ours} here and {theirs} there" for name, (ours, theirs) in differ.items())
        raise InvalidOptionError(
            f"the cluster's machines are not alike ({named}), so their results do not compare: evaluate on machines of "
            "one kind"
        )
