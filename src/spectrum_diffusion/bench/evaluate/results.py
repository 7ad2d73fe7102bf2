"""Collects the records of a plan into results: a line for each unit, and a row for each method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...core.summary import Flops
from ..metrics import Judge
from .measures import Metrics, applies, read_metrics
from .request import REFERENCE
from .scores import judged, read_score
from .statistics import Values, by_prompt, difference, estimate, median, quartiles, verdict
from .store import Store
from .units import Unit, WorkPlan

FACTS = ("title", "unit", "higher_is_better", "source", "whole")
"""What the results say about a metric."""


@dataclass
class Results:
    """The results of an evaluation.

    Attributes:
        folder: contains all files.
        units: a dict for each finished unit, the references first: the lines of ``results.jsonl``.
        rows: a dict for each method in the requested order, the reference first; see ``results.json``.
        metrics: name → title, unit, direction and source of a metric, and whether it only has a value for a whole row.
        baseline: label of the row that the others are compared with, or None.
        failures: label → reason.
        computed: calls of the pipeline in this run.
        settings: the part of every key that all units share: model, call, environment.
        problems: metric and row → why it could not be computed; images that are too small are not a problem.
        uncounted: row → why its operations could not be counted, mostly because its code is compiled.
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


def collect(folder: Path, plan: WorkPlan, store: Store, metrics: Metrics) -> Results:
    """Read the finished part of a plan."""
    units = _read_units(plan, store, metrics.every)
    baseline = plan.request.find_baseline()
    labels = (REFERENCE, *(row.label for row in plan.request.rows))
    by_label = {label: [unit for unit in units if unit["row"] == label] for label in labels}
    references, baselines = by_label[REFERENCE], by_label.get(baseline or "", [])
    judges = metrics.every
    rows = [_row(label, own, references, baselines, judges) for label, own in by_label.items()]
    counted = {label: record for label, unit in plan.flops.items() if (record := store.record(unit))}
    for row in rows:
        row |= _of_method(row["label"], plan, counted, baseline)
        _add_scores(row, plan, store, metrics)
        for name, metric in row["metrics"].items():
            metric["problem"] = plan.problems.get((row["label"], name), metric["problem"])
    described = {name: {fact: getattr(judge, fact) for fact in FACTS} for name, judge in judges.items()}
    problems = {f"{judges[name].title} of {label}": reason for (label, name), reason in plan.problems.items()}
    return Results(
        folder,
        plan.request.model,
        units,
        rows,
        described,
        baseline,
        dict(plan.failures),
        plan.settings,
        problems=problems,
        uncounted=_uncounted(counted),
    )


def _uncounted(counted: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Why operations could not be counted; a single reason if it applies to all rows."""
    problems = {label: record["problem"] for label, record in counted.items() if record["problem"]}
    if REFERENCE in problems:
        return {"operations": problems[REFERENCE]}
    return {f"operations of {label}": problem for label, problem in problems.items()}


def _read_units(plan: WorkPlan, store: Store, metrics: dict[str, Judge]) -> list[dict[str, Any]]:
    references = {unit.case: unit for unit in plan.references}
    lines = []
    for unit in plan.every:
        if record := store.record(unit):
            measured = read_metrics(store, unit, references[unit.case], metrics)
            lines.append(_line(unit, record, measured, store))
    return lines


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


def _of_method(label: str, plan: WorkPlan, counted: dict[str, dict[str, Any]], baseline: str | None) -> dict[str, Any]:
    """Facts about a row that do not come from its units."""
    requested = next((row for row in plan.request.rows if row.label == label), None)
    return {
        "method": requested.method if requested else None,
        "options": plan.options.get(label, dict(requested.options) if requested else {}),
        "flops": _flops(label, counted),
        "is_baseline": label == baseline,
        "error": plan.failures.get(label),
    }


def _flops(label: str, counted: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """The operations of a row, in whole evaluations of the untouched pipeline, which may be cheaper than a method's."""
    row, whole = (counted[name]["flops"] if name in counted else None for name in (label, REFERENCE))
    if not row or not whole:
        return None
    return Flops(total=int(row["total"]), evaluation=int(whole["evaluation"])).to_dict()


def _add_scores(row: dict[str, Any], plan: WorkPlan, store: Store, metrics: Metrics) -> None:
    """Add the values of programs for a whole row: a mean without an interval."""
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
    """Means over a row's units. The baseline is not compared with itself."""
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
    """Mean and interval. Infinite values (PSNR of identical images) are counted apart, which favours no method."""
    values = _values(units, name)
    metric: dict[str, Any] = {
        **asdict(estimate(list(by_prompt(values).values()))),
        "infinite": sum(name in unit["infinite"] for unit in units),
        "problem": next((unit["problems"][name] for unit in units if name in unit["problems"]), None),
    }
    if baseline and units and not judge.whole:
        gap = difference(values, _values(baseline, name))
        metric["against_baseline"] = {**asdict(gap), "verdict": verdict(gap, judge.higher_is_better)}
    return metric


def _memory(units: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Peaks of the calls; None if the system does not report them."""
    peaks = [unit["memory"]["bytes"] for unit in units if unit["memory"]["bytes"]]
    return {"median": median(peaks), "most": max(peaks), "kind": units[0]["memory"]["kind"]} if peaks else None


def _values(units: list[dict[str, Any]], name: str) -> Values:
    return {(unit["prompt"], unit["seed"]): unit["metrics"].get(name) for unit in units}


def _median_ratio(
    references: list[dict[str, Any]], units: list[dict[str, Any]], name: str, *, together: bool = False
) -> float | None:
    """Median ratio of the reference to a row, case by case; with ``together`` only pairs that ran in the same run."""
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
    """The mean error of the latents after each step."""
    paths = [unit["path_rmse"] for unit in units if unit.get("path_rmse")]
    if not paths or len({len(path) for path in paths}) > 1:
        return None
    return [sum(values) / len(values) for values in zip(*paths, strict=True)]
