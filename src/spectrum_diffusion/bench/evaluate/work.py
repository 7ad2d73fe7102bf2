"""Generates what is missing, case by case, so that a slow phase of the machine affects all methods alike."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ...atomic import StoreError
from ...core.words import reason_of
from ..metrics import PictureJudge
from .measures import measure_unit
from .request import Row
from .sampling import Sample, path_rmse, sample
from .store import Store
from .units import Unit, WorkPlan

log = logging.getLogger(__name__)

WARM_UP_STEPS = 2
WHOLE = Row("fewer-steps", {"speedup": 1})
"""The reference as a method, which counts its operations."""

OnUnit = Callable[[int, int, str], None]
"""Called with the number of finished units, the number of all units, and the next task."""


class Work:
    """Generates and measures the units of a plan that the store lacks.

    A row that fails is left out from then on, and its reason is noted; the next evaluation tries it again. A failure of
    the reference ends the evaluation. Rows that share units share their failures.

    Args:
        finished: names of units that are known to be finished; the others are looked up.

    Attributes:
        run_id: marks what was timed together: times of different runs are not comparable.
        computed: calls of the pipeline, without the warm-up.
    """

    def __init__(
        self,
        pipe: Any,
        plan: WorkPlan,
        store: Store,
        metrics: Mapping[str, PictureJudge],
        on_unit: OnUnit,
        finished: Iterable[str] = (),
    ) -> None:
        self.pipe, self.plan, self.store, self.metrics = pipe, plan, store, metrics
        self._on_unit = on_unit
        self.run_id, self.computed = secrets.token_hex(8), 0
        self._failed: dict[str, str] = {}
        self._finished, self._is_warm = set(finished), False
        self._done, self._total = len(self._finished), len(plan.distinct)

    def run_case(self, index: int) -> None:
        """Do the work on a case. Only a failure of the untouched pipeline, or of the disk, ends it."""
        if not self._is_warm and not all(map(self._is_finished, self.plan.of_case(index).values())):
            self._warm_up()
        reference = self.plan.references[index]
        self._generate(reference)
        for units in self.plan.by_label.values():
            self._try(units[index], reference)

    def _is_finished(self, unit: Unit) -> bool:
        if unit.name not in self._finished and self.store.record(unit):
            self._finished.add(unit.name)
        return unit.name in self._finished

    def _try(self, unit: Unit, reference: Unit) -> None:
        if unit.name in self._failed:  # in a row with another label
            self.plan.failures.setdefault(unit.label, self._failed[unit.name])
        if unit.label in self.plan.failures:
            return
        try:
            if unit.row:
                self._generate(unit, reference)
            self._measure(unit, reference)
        except StoreError:
            raise
        except Exception as error:  # of the pipeline or any library: the other rows continue
            log.debug("%s failed", unit.label, exc_info=error)
            self._failed[unit.name] = f"{unit.case.prompt.text!r}, seed {unit.case.seed}: {reason_of(error)}"
            self.plan.failures[unit.label] = self._failed[unit.name]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _measure(self, unit: Unit, reference: Unit) -> None:
        problems, label = self.plan.problems, unit.label
        metrics = {name: judge for name, judge in self.metrics.items() if (label, name) not in problems}
        for name, problem in measure_unit(self.store, unit, reference, metrics).items():
            problems[label, name] = problem

    def _generate(self, unit: Unit, reference: Unit | None = None) -> None:
        counted = self.plan.flops.get(unit.label)
        if counted is None or unit.case != counted.case:
            self._ensure(unit, reference)
            return
        problem = self._count(counted)  # not timed: this is also the row's warm-up
        self._ensure(unit, reference)
        if problem:  # the call works, but its operations can't be counted
            self._save_count(counted, None, problem)

    def _ensure(self, unit: Unit, reference: Unit | None = None) -> None:
        if self._is_finished(unit):
            return
        self._on_unit(self._done, self._total, f"{unit.label}: {unit.case.prompt.text}")
        request = self.plan.request
        self.computed += 1
        result = sample(self.pipe, unit.case, request.call, unit.row, path=request.path)
        measured = {"run": self.run_id, **_measured(result)}
        if reference and result.latents is not None and (record := self.store.record(reference)):
            measured["path_rmse"] = path_rmse(result.latents, self.store.latents(record))
        self.store.save(unit, result, measured)
        self._finish(unit)

    def _count(self, unit: Unit) -> str:
        """Count the operations of a row's first case. Returns why that failed, which is not a failure of the row."""
        if self._is_finished(unit):
            return ""
        self._on_unit(self._done, self._total, f"{unit.label}: counting operations")
        try:
            self.computed += 1
            summary = sample(self.pipe, unit.case, self.plan.request.call, unit.row or WHOLE, flops=True).summary
        except torch.OutOfMemoryError:  # the next evaluation may have more memory
            return ""
        except Exception as error:  # mostly because the code is compiled
            return reason_of(error)
        self._save_count(unit, summary.flops.to_dict() if summary and summary.flops else None, "")
        return ""

    def _save_count(self, unit: Unit, flops: dict[str, float] | None, problem: str) -> None:
        self.store.save_record(unit, {"method": unit.method, "flops": flops, "problem": problem})
        self._finish(unit)

    def _finish(self, unit: Unit) -> None:
        self._finished.add(unit.name)
        self._done += 1
        self._on_unit(self._done, self._total, "")

    def _warm_up(self) -> None:
        """Generate once before timing: the first call of a process is slower than all others."""
        self._is_warm = True
        call = self.plan.settings["call"]
        steps, strength = call.get("num_inference_steps"), call.get("strength", 1)
        least = math.ceil(WARM_UP_STEPS / strength)  # image-to-image takes only this share of the steps
        short = {"num_inference_steps": min(steps, least)} if isinstance(steps, int) else {}
        sample(self.pipe, self.plan.cases[0], {**self.plan.request.call, **short}, None)


def _measured(sample: Sample) -> dict[str, Any]:
    summary = sample.summary.to_dict() if sample.summary else {}
    return {
        "steps": sample.steps,
        "nfe": sample.nfe,
        "evaluated": sample.evaluated,
        "decisions": sample.decisions,
        "fallbacks": summary.get("fallbacks", {}),
        "branches": summary.get("branches", {}),
        "history_bytes": summary.get("history_bytes", 0),
        "seconds": sample.spent.seconds,
        "loop_seconds": sample.spent.loop,
        "memory": asdict(sample.spent.memory),
        "size": list(sample.frames[0].size),
    }
