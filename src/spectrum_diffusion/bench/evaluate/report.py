"""One page that shows an evaluation, in one file: images, styles and script are embedded, and nothing is fetched.

Without the script everything but the image viewer works. Prompts, labels and errors come from outside: the template
escapes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.words import counted_name
from ...errors import MissingPackageError
from ..cost import ALLOCATED
from . import charts, examples, files, plots
from .request import REFERENCE
from .results import Results
from .statistics import ENOUGH
from .store import Store
from .tables import TableColumn, columns, digits_of, known_metrics, memory_kind, metric_text, whole_titles

try:
    import jinja2
    from markupsafe import Markup
except ImportError:  # every PyTorch of today installs it
    raise MissingPackageError(
        "the report needs Jinja2, which is not installed: pip install 'spectrum-diffusion[bench]'"
    ) from None

TEMPLATES = Path(__file__).with_name("templates")
VERDICTS = {"better": "▲ better", "worse": "▼ worse", "no difference seen": "≈", "too few prompts": "?"}


def write_report(results: Results, store: Store) -> None:
    """Write ``report.html`` of an evaluation."""
    files.write_text(results.folder / "report.html", report_page(results, store))


def report_page(results: Results, store: Store) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("report.html")
    return template.render(
        results=results,
        lead=_lead(results),
        failures=results.failures | results.problems | results.uncounted,
        facts=_facts(results),
        about=lambda unit: _about(results, unit),
        **_table(results),
        **_plots(results),
        **_examples(results, store),
    )


def _lead(results: Results) -> str:
    counted = results.to_dict()
    methods = counted_name(len(results.rows) - 1, "method")
    prompts, seeds = counted_name(counted["prompts"], "prompt"), counted_name(len(counted["seeds"]), "seed")
    return f"{methods} compared with the reference: {prompts}, {seeds} each."


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, the value it is sorted by, and what stands below in small print."""

    text: str
    value: float | str = ""
    small: str = ""
    verdict: str = ""
    verdict_class: str = ""
    difference: str = ""


def _table(results: Results) -> dict[str, Any]:
    shown = columns(results)
    kind = memory_kind(results)
    return {
        "titles": ["method", *(column.title for column in shown)],
        "rows": [
            {
                "label": row["label"],
                "colour": plots.colour(number),
                "note": _note(row),
                "cells": [_cell(results, row, column) for column in shown],
            }
            for number, row in enumerate(results.rows)
        ],
        "enough": ENOUGH,
        "several_runs": len({unit["run"] for unit in results.units}) > 1,
        "memory_kind": kind,
        "allocated": kind == ALLOCATED,
        "whole_titles": whole_titles(results),
        "any_infinite": any(metric["infinite"] for row in results.rows for metric in row["metrics"].values()),
    }


def _note(row: dict[str, Any]) -> str:
    complete = row["units"] == row["of"] and not row["error"]
    notes = ["" if complete else f"failed, {row['units']} of {row['of']}", "baseline" if row["is_baseline"] else ""]
    return ", ".join(note for note in notes if note)


def _cell(results: Results, row: dict[str, Any], column: TableColumn) -> Cell:
    value = column.value(row)
    stored: float | str = "" if value is None else value
    metric = row["metrics"].get(column.name) if column.name else None
    if metric is None:
        return Cell("–" if column.name else column.text(row), stored, column.small(row))
    digits = digits_of(results, column.name)
    mean, _, interval = metric_text({**metric, "against_baseline": None}, digits).partition(" ")
    gap = metric.get("against_baseline")
    if not gap or gap["mean"] is None:
        return Cell(mean, stored, interval)
    difference = f"{gap['verdict']}: difference {gap['mean']:+.{digits}f}"
    if gap["low"] is not None:
        difference += f" [{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
    return Cell(mean, stored, interval, VERDICTS[gap["verdict"]], gap["verdict"].split(" ")[0], difference)


def _plots(results: Results) -> dict[str, Any]:
    curves = charts.path_curves(results)
    return {
        "charts": {name: [Markup(plot) for plot in charts.plots_of(results, name)] for name in known_metrics(results)},
        "crowded": charts.is_crowded(results),
        "path_plot": Markup(charts.path(curves)),
        "crowded_path": len(curves) > plots.ROOM,
        "room": plots.ROOM,
        "strips": [(name, small, Markup(strip)) for name, small, strip in charts.decisions(results)],
    }


def _examples(results: Results, store: Store) -> dict[str, Any]:
    return {
        "cases": examples.choose(results, store),
        "case_count": sum(unit["row"] == REFERENCE for unit in results.units),
        "gain": examples.GAIN,
        "exact": examples.EXACT,
    }


def _about(results: Results, unit: dict[str, Any]) -> str:
    """Evaluations, and the first metric of a unit."""
    text = f"NFE {unit['nfe']}"
    name = next(iter(known_metrics(results)), "")
    if (value := unit["metrics"].get(name)) is not None:
        metric = results.metrics[name]
        text += f", {value:.{digits_of(results, name)}f} {metric['unit'] or metric['title']}"
    elif name in unit["infinite"]:
        text += ", identical"
    return text


def _facts(results: Results) -> dict[str, str]:
    """What ran where."""
    manifest, settings = results.manifest, results.settings
    last_run = (manifest.get("runs") or [{}])[-1]
    return {
        "model": results.model,
        "call": _listed(settings["call"]),
        "environment": _listed(settings["environment"]),
        "machine": _listed({name: value for name, value in last_run.items() if name in ("system", "python")}),
        "pipeline": f"SHA-256 {settings['pipeline'][:16]}… of its configuration and of sampled weights",
        "seeds": ", ".join(map(str, manifest.get("seeds", []))),
        **{results.metrics[name]["title"]: results.metrics[name]["source"] for name in known_metrics(results)},
        **{row["label"]: _listed(row["options"]) for row in results.rows if row["method"]},
    }


def _listed(values: dict[str, Any]) -> str:
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
