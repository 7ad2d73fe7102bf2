"""Compares methods with the untouched pipeline over many prompts: images, metrics with intervals, costs, a report.

>>> from spectrum_diffusion.evaluate import Request, Row, evaluate          # doctest: +SKIP
>>> request = Request(model="tiny-flux", rows=(Row("paper"),), prompts=prompts)   # doctest: +SKIP
>>> results = evaluate(pipe, request, folder)                               # doctest: +SKIP
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...cluster import Cluster, joined
from ...keys import machine
from . import files
from .crew import Actors, Crew, Here
from .lock import locked
from .measures import choose_metrics
from .request import REFERENCE, Case, Request, Row
from .results import Results, collect
from .scores import run_programs
from .store import Store
from .units import WorkPlan
from .work import OnUnit


def evaluate(pipe: Any, request: Request, folder: str | Path, on_unit: OnUnit | None = None) -> Results:
    """Generate, measure and write results, continuing from what the folder already contains.

    Everything that determines a result is in its key. A folder can therefore be reused with other methods, prompts,
    versions or models: matching results are kept, missing ones are computed, and results never mix. An evaluation may
    be killed at any moment; the same call continues it.

    Args:
        pipe: a diffusers pipeline, on its device.
        request: what to evaluate.
        folder: created if missing. It receives ``results.jsonl``, ``results.json``, ``table.md``, ``table.tex``,
            ``report.html``, ``manifest.json`` and the frames in ``units/``.
        on_unit: called with the number of finished units, the number of all units, and the next task.

    Raises:
        ConflictError: another evaluation uses the folder.
        StoreError: the folder can't be written; finished work is kept.
        MissingPackageError: Jinja2 is not installed.
        SpectrumError: a metric is unknown. Exceptions of the untouched pipeline are not caught.
    """
    return _evaluated(Here(pipe), request, Path(folder), on_unit)


def evaluate_on_ray(
    load: Callable[[], Any], cluster: Cluster, request: Request, folder: str | Path, on_unit: OnUnit | None = None
) -> Results:
    """As :func:`evaluate`, with the prompts and seeds spread over the actors of a Ray cluster.

    Args:
        load: loads the pipeline in an actor; it must pickle.
        cluster: its machines must be alike, and see the folder under the same path.

    Raises:
        InvalidOptionError: the cluster cannot be reached, or is too small.
        RuntimeError: the untouched pipeline fails, or actors can't be made. Finished work is kept.
    """
    with joined(cluster) as pool:
        return _evaluated(Actors(pool, load), request, Path(folder), on_unit)


def _evaluated(crew: Crew, request: Request, folder: Path, on_unit: OnUnit | None) -> Results:
    from .report import write_report  # before any work: it needs Jinja2

    with evaluation(crew, request, folder, on_unit) as results:
        _write(results)
        write_report(results, Store(results.folder))
    return results


@contextmanager
def evaluation(crew: Crew, request: Request, folder: Path, on_unit: OnUnit | None = None) -> Iterator[Results]:
    """Generate and measure what a folder lacks, and yield all results while the folder is locked."""
    metrics, say = choose_metrics(request), on_unit or (lambda done, total, what: None)
    with locked(folder):
        files.remove_temporaries(folder)
        store, plan = Store(folder), crew.plan(request)
        manifest = _begin(folder, plan, crew.facts)
        computed = crew.work(plan, store, metrics.images, say)
        run_programs(plan, store, metrics.programs, crew.device, say)
        results = collect(folder, plan, store, metrics)
        results.computed, results.manifest = computed, manifest
        yield results
        manifest["runs"][-1] |= {"ended": _now(), "computed": computed}
        files.write_json(folder / "manifest.json", manifest)


def _begin(folder: Path, plan: WorkPlan, facts: dict[str, Any]) -> dict[str, Any]:
    """The manifest: what is evaluated, and every run of the command in this folder."""
    earlier = (files.read_json(folder / "manifest.json") or {}).get("runs")
    request = plan.request
    manifest = {
        "model": request.model,
        "command": request.command,
        "settings": plan.settings,
        "rows": [{"label": row.label, "method": row.method, "options": dict(row.options)} for row in request.rows],
        "prompts": list({case.prompt.text: asdict(case.prompt) for case in plan.cases}.values()),
        "seeds": list(request.seeds),
        "runs": [
            *(earlier if isinstance(earlier, list) else []),
            {"begun": _now(), "command": request.command, **machine(), **facts},
        ],
    }
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def _write(results: Results) -> None:
    from .tables import latex, markdown

    lines = "".join(json.dumps(unit, ensure_ascii=False, allow_nan=False) + "\n" for unit in results.units)
    files.write_text(results.folder / "results.jsonl", lines)
    files.write_json(results.folder / "results.json", results.to_dict())
    files.write_text(results.folder / "table.md", markdown(results))
    files.write_text(results.folder / "table.tex", latex(results))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


__all__ = ["REFERENCE", "Case", "Here", "Request", "Results", "Row", "evaluate", "evaluate_on_ray", "evaluation"]
