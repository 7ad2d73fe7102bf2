"""From the records of a plan to its results: a line a unit, and a row a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.summary import Flops
from ..metrics import Judge
from .measures import Metrics, applies, read_metrics
from .plan import Plan, Unit
from .programs import judged, read_score
from .request import REFERENCE
from .statistics import by_prompt, difference, estimate, median, quartiles, verdict
from .store import Store

Values = Mapping[tuple[str, int], float | None]


@dataclass
class Results:
    """What an evaluation gave.

    Attributes:
        folder: where it lies.
        units: a dict for each finished unit, the references first; the lines of ``results.jsonl``.
        rows: a dict for each method, in the order asked for, the reference first; see ``results.json``.
        metrics: by name, title, unit, direction and source of each metric, and whether it is of a whole row only.
        baseline: label of the row that the others are compared with, or None.
        failures: label → reason.
        computed: calls of the pipeline that were made this time.
        settings: what goes into every key: model, call, environment.
        problems: which metric could not be computed of which row → reason; pictures too small for one are no problem.
        uncounted: whose operations could not be counted → reason; compiled code, mostly.
    """

    folder: Path
    model: str
    units: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    baseline: str | None
    failures: dict[str, str]
    settings: dict[str, Any]
    computed: int = 0
    manifest: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the units."""
        return {
            "model": self.model,
            "prompts": len({unit["prompt"] for unit in self.units}),
            "seeds": sorted({unit["seed"] for unit in self.units}),
            "baseline": self.baseline,
            "metrics": self.metrics,
            "rows": self.rows,
            "failures": self.failures,
            "problems": self.problems,
            "uncounted": self.uncounted,
            "settings": self.settings,
        }


def collect(folder: Path, plan: Plan, store: Store, metrics: Metrics) -> Results:
    """Read back what is finished of a plan."""
    units = _read_units(plan, store, metrics.every)
    baseline = plan.request.find_baseline()
    of = {label: [unit for unit in units if unit["row"] == label] for label in (REFERENCE, *_labels(plan))}
    judges = metrics.every
    rows = [_row(label, found, of[REFERENCE], of.get(baseline or "", []), judges) for label, found in of.items()]
    counted = {label: record for label, unit in plan.flops.items() if (record := store.record(unit))}
    for row in rows:
        row |= _of_method(row["label"], plan, counted, baseline)
        _add_scores(row, plan, store, metrics)
        for name, found in row["metrics"].items():
            found["problem"] = plan.problems.get((row["label"], name), found["problem"])
    shown = {name: _shown(judge) for name, judge in judges.items()}
    problems = {f"{judges[name].title} of {label}": reason for (label, name), reason in plan.problems.items()}
    failures = dict(plan.failures)
    return Results(
        folder,
        plan.request.model,
        units,
        rows,
        shown,
        baseline,
        failures,
        plan.settings,
        problems=problems,
        uncounted=_uncounted(counted),
    )


def _uncounted(counted: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Why operations could not be counted; one reason where it is that of all rows."""
    problems = {label: record["problem"] for label, record in counted.items() if record["problem"]}
    if REFERENCE in problems:
        return {"operations": problems[REFERENCE]}
    return {f"operations of {label}": problem for label, problem in problems.items()}


def _shown(judge: Judge) -> dict[str, Any]:
    """What a reader must know of a metric."""
    names = ("title", "unit", "higher_is_better", "source", "whole")
    return {name: getattr(judge, name) for name in names}


def _labels(plan: Plan) -> list[str]:
    return [row.label for row in plan.request.rows]


def _read_units(plan: Plan, store: Store, metrics: dict[str, Judge]) -> list[dict[str, Any]]:
    references = {unit.case: unit for unit in plan.references}
    found = []
    for unit in plan.every:
        if (record := store.record(unit)) is None:
            continue
        measured = read_metrics(store, unit, references[unit.case], metrics)
        found.append(_line(unit, record, measured, store))
    return found


def _line(unit: Unit, record: dict[str, Any], measured: dict[str, Any], store: Store) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in ("files", "key", "method", "prompt", "seed")}
    return {
        "row": unit.label,
        "prompt": unit.case.prompt.text,
        "category": unit.case.prompt.category,
        "seed": unit.case.seed,
        "file": store.frames_file(record),
        **kept,
        "metrics": {name: value.get("value") for name, value in measured.items()},
        "infinite": [name for name, value in measured.items() if value.get("infinite")],
        "problems": {name: value["problem"] for name, value in measured.items() if "problem" in value},
        "key": unit.key,
    }


def _of_method(label: str, plan: Plan, counted: dict[str, dict[str, Any]], baseline: str | None) -> dict[str, Any]:
    """What is known of a row beside its units."""
    asked = next((row for row in plan.request.rows if row.label == label), None)
    return {
        "method": asked.method if asked else None,
        "options": plan.options.get(label, dict(asked.options) if asked else {}),
        "flops": _flops(label, counted),
        "is_baseline": label == baseline,
        "error": plan.failures.get(label),
    }


def _flops(label: str, counted: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """What was counted of a row, in whole evaluations of the untouched pipeline: a method's own may have more to do."""
    row, whole = (counted[name]["flops"] if name in counted else None for name in (label, REFERENCE))
    if not row or not whole:
        return None
    return Flops(total=int(row["total"]), evaluation=int(whole["evaluation"])).to_dict()


def _add_scores(row: dict[str, Any], plan: Plan, store: Store, metrics: Metrics) -> None:
    """What programs said of a row as a whole: a mean without interval."""
    for name, program in metrics.programs.items():
        units = judged(program, plan.by_label.get(row["label"], []), store) if program.whole else []
        if score := read_score(program, units, store):
            prompts = len({unit.case.prompt.text for unit in units})
            row["metrics"][name] |= {"mean": score["value"], "prompts": prompts, "parts": score["parts"]}


def _row(
    label: str,
    units: list[dict[str, Any]],
    references: list[dict[str, Any]],
    baseline: list[dict[str, Any]],
    metrics: dict[str, Judge],
) -> dict[str, Any]:
    """Means over a row's units; its own baseline is no difference."""
    nfe, seconds = [unit["nfe"] for unit in units], [unit["seconds"] for unit in units]
    loops = [unit["loop_seconds"] for unit in units if unit["loop_seconds"] is not None]
    history = [unit["history_bytes"] for unit in units if unit["history_bytes"] is not None]  # None of other packages'
    gaps = baseline if baseline and baseline[0]["row"] != label and label != REFERENCE else []
    judges = {name: judge for name, judge in metrics.items() if applies(judge, label)}
    return {
        "label": label,
        "units": len(units),
        "of": len(references),
        "nfe": {"mean": sum(nfe) / len(nfe), "least": min(nfe), "most": max(nfe)} if nfe else None,
        "fewer_evaluations": _median_ratio(references, units, "nfe"),
        "seconds": median(seconds),
        "seconds_quartiles": quartiles(seconds),
        "loop_seconds": median(loops),
        "faster": _median_ratio(references, units, "seconds", together=True),
        "history_bytes": max(history, default=None),
        "memory": _memory(units),
        "metrics": {name: _metric(name, judge, units, gaps) for name, judge in judges.items()},
        "path_rmse": _mean_path(units),
    }


def _metric(name: str, judge: Judge, units: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval; infinite values (PSNR of identical pictures) are counted apart, in no method's favour."""
    values = _values(units, name)
    found: dict[str, Any] = {
        **estimate(list(by_prompt(values).values())).to_dict(),
        "infinite": sum(name in unit["infinite"] for unit in units),
        "problem": next((unit["problems"][name] for unit in units if name in unit["problems"]), None),
    }
    if baseline and units and not judge.whole:
        gap = difference(values, _values(baseline, name))
        found["against_baseline"] = {**gap.to_dict(), "verdict": verdict(gap, judge.higher_is_better)}
    return found


def _memory(units: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Peaks of the calls; None where the system doesn't say."""
    peaks = [unit["memory"]["bytes"] for unit in units if unit["memory"]["bytes"]]
    return {"median": median(peaks), "most": max(peaks), "kind": units[0]["memory"]["kind"]} if peaks else None


def _values(units: list[dict[str, Any]], name: str) -> Values:
    return {(unit["prompt"], unit["seed"]): unit["metrics"].get(name) for unit in units}


def _median_ratio(
    references: list[dict[str, Any]], units: list[dict[str, Any]], name: str, *, together: bool = False
) -> float | None:
    """How many times less of something than the reference, case by case; ``together``: where both are of one run."""
    whole = {(unit["prompt"], unit["seed"]): unit for unit in references}
    pairs = [(whole.get((unit["prompt"], unit["seed"])), unit) for unit in units]
    return median(
        [
            reference[name] / unit[name]
            for reference, unit in pairs
            if reference and unit[name] and (not together or reference["run"] == unit["run"])
        ]
    )


def _mean_path(units: list[dict[str, Any]]) -> list[float] | None:
    """The latents' error after each step, over the units that have it."""
    paths = [unit["path_rmse"] for unit in units if unit.get("path_rmse")]
    if not paths or len({len(path) for path in paths}) > 1:
        return None
    return [sum(values) / len(values) for values in zip(*paths, strict=True)]
