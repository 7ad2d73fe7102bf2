"""One page that shows an evaluation, in one file: pictures, styles and script are within, and nothing is fetched.

Without the script everything but the picture viewer is there. Text comes from outside (prompts, labels, errors) and is
escaped where it becomes HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from ..cost import ALLOCATED
from . import examples, files, plots
from .charts import decisions, note, path, quality, section
from .request import REFERENCE
from .results import Results
from .statistics import ENOUGH
from .store import Store
from .tables import Column, columns, counted_name, digits_of, known_metrics, memory_kind, metric_text, whole_titles

VERDICTS = {"better": "▲ better", "worse": "▼ worse", "no difference seen": "≈", "too few prompts": "?"}


def write_report(results: Results, store: Store) -> None:
    """Write ``report.html`` of an evaluation.

    Raises:
        StoreError: it can't be written.
    """
    files.write_text(results.folder / "report.html", page(results, store))


def page(results: Results, store: Store) -> str:
    """The page as HTML."""
    sections = (
        _failures(results),
        _table(results),
        quality(results),
        path(results),
        decisions(results),
        _examples(results, store),
        _made(results),
    )
    parts = {
        "TITLE": escape(f"Evaluation of {results.model}"),
        "LEAD": escape(_lead(results)),
        "CSS": plots.stylesheet() + _asset("page.css"),
        "JS": _asset("page.js"),
        "CONTENT": "\n".join(part for part in sections if part),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


def _lead(results: Results) -> str:
    counted = results.to_dict()
    methods = counted_name(len(results.rows) - 1, "method")
    prompts, seeds = counted_name(counted["prompts"], "prompt"), counted_name(len(counted["seeds"]), "seed")
    return f"{methods} beside the untouched pipeline: {prompts}, {seeds} each."


def _failures(results: Results) -> str:
    failed = results.failures | results.problems | results.uncounted
    if not failed:
        return ""
    found = [
        f'<div class="failure"><strong>{escape(label)}</strong>: {escape(reason)}</div>'
        for label, reason in failed.items()
    ]
    return section("What failed", *found)


def _table(results: Results) -> str:
    shown = columns(results)
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(title)}</button></th>'
        for title in ("method", *(column.title for column in shown))
    )
    rows = "".join(_row(results, row, shown, number) for number, row in enumerate(results.rows))
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return section("Results", table, note(_explained(results)))


def _explained(results: Results) -> str:
    text = (
        "Fewer and faster are times less than the reference, in evaluations and in seconds of the whole call. "
        "Seconds are the median of the calls, with the quartiles below. "
        "Square brackets are 95 % intervals of the mean, by a bootstrap over prompts. "
    )
    if results.baseline:
        text += (
            f"Better and worse are said against {results.baseline}, prompt by prompt, and only where the interval of "
            f"the difference leaves out zero and there are {ENOUGH} prompts or more; ≈ is no difference seen, ? too "
            "few prompts to tell. "
        )
    if len({unit["run"] for unit in results.units}) > 1:
        text += (
            "The calls were timed in several runs, between which the machine may have been busier: faster counts only "
            "those timed in one run with their reference, and seconds of different rows may not compare. "
        )
    if kind := memory_kind(results):
        text += f"Peak MiB is what a call had at most, {kind}: the median of the calls, in round brackets the highest. "
        if kind != ALLOCATED:
            text += "That counts weights and libraries too, and says little of how small models' methods differ. "
    if whole := whole_titles(results):
        text += f"{whole}: one value of all pictures of a row, so that there is no interval and no verdict. "
    if any(found["infinite"] for row in results.rows for found in row["metrics"].values()):
        text += "Pictures identical to the reference have an infinite PSNR and are left out of its mean."
    return text


def _row(results: Results, row: dict[str, Any], shown: Sequence[Column], number: int) -> str:
    name = f'<span class="key" style="color:{plots.colour(number)}"></span>{escape(row["label"])}'
    extra = [text for text in (_complete(row), "baseline" if row["is_baseline"] else "") if text]
    small = f"<small>{escape(', '.join(extra))}</small>" if extra else ""
    cells = "".join(_cell(results, row, column) for column in shown)
    return f'<tr><th scope="row" data-value="{escape(row["label"])}">{name}{small}</th>{cells}</tr>'


def _complete(row: dict[str, Any]) -> str:
    if row["units"] == row["of"] and not row["error"]:
        return ""
    return f"failed, {row['units']} of {row['of']}"


def _cell(results: Results, row: dict[str, Any], column: Column) -> str:
    value = column.value(row)
    stored = "" if value is None else f"{value!r}"
    if column.name:
        text = _metric_cell(results, row, column.name)
    else:
        small = column.small(row)
        text = escape(column.text(row)) + (f"<small>{escape(small)}</small>" if small else "")
    return f'<td data-value="{stored}">{text}</td>'


def _metric_cell(results: Results, row: dict[str, Any], name: str) -> str:
    found = row["metrics"].get(name)
    if found is None:
        return "–"
    digits = digits_of(results, name)
    bare = {key: value for key, value in found.items() if key != "against_baseline"}
    mean, _, interval = metric_text(bare, digits).partition(" ")
    gap = found.get("against_baseline")
    said = ""
    if gap and gap["mean"] is not None:
        kind = gap["verdict"].split(" ")[0]
        title = f"{gap['verdict']}: difference {gap['mean']:+.{digits}f}"
        if gap["low"] is not None:
            title += f" [{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
        said = f'<small class="{kind}" title="{escape(title)}">{VERDICTS[gap["verdict"]]}</small>'
    return f"{escape(mean)}<small>{escape(interval)}</small>{said}"


def _examples(results: Results, store: Store) -> str:
    cases = examples.choose(results, store)
    if not cases:
        return ""
    whole = len([unit for unit in results.units if unit["row"] == REFERENCE])
    picked = f" {len(cases)} of {whole} cases, evenly spaced in their order." if whole > len(cases) else ""
    text = note(
        "Choose a picture to see it against its reference. Differences are of the kept frames, "
        f"{examples.GAIN} times brightened; large pictures are shown smaller.{picked}"
    )
    return section("Examples", text, _VIEWER, *(_case(results, case) for case in cases))


_VIEWER = """<div class="viewer" id="viewer" hidden>
<div class="controls">
<label class="wide">Picture <select id="choice"></select></label>
<label>View <select id="view"><option value="slider">slider</option><option value="side">side by side</option>
<option value="difference">difference</option></select></label>
</div>
<div class="stage" data-view="slider">
<figure class="pane method"><div></div><figcaption></figcaption></figure>
<figure class="pane reference"><div></div><figcaption></figcaption></figure>
</div>
<div class="controls">
<label class="wide">Share of the reference <input type="range" id="cut" min="0" max="100" value="50"></label>
<label class="wide">Frame <input type="range" id="frame" min="0" max="0" value="0"></label>
</div>
<p class="note" id="about" aria-live="polite"></p>
</div>
"""


def _case(results: Results, case: list[examples.Example]) -> str:
    unit = case[0].unit
    name = f"{unit['prompt']}, seed {unit['seed']}"
    category = f" <small>{escape(unit['category'])}</small>" if unit["category"] else ""
    video = " video" if case[0].frames > 1 else ""
    figures = "".join(_figure(results, example) for example in case)
    return (
        f'<section class="case" data-name="{escape(name)}"><h3>{escape(name)}{category}</h3>'
        f'<div class="thumbs{video}">{figures}</div></section>'
    )


def _figure(results: Results, example: examples.Example) -> str:
    unit = example.unit
    about = _about(results, unit)
    width, height = example.size
    pixels = ' class="pixels"' if width <= examples.EXACT else ""
    alt, label = f"{unit['row']}: {unit['prompt']}", escape(unit["row"])
    return (
        f'<figure><button type="button" data-about="{label}, {escape(about)}">'
        f'<img{pixels} src="{example.picture}" alt="{escape(alt)}" width="{width * example.frames}" height="{height}" '
        f'data-label="{label}" data-frames="{example.frames}" data-width="{width}" '
        f'data-height="{height}" data-difference="{example.difference}"></button>'
        f"<figcaption>{label}<br>{escape(about)}</figcaption></figure>"
    )


def _about(results: Results, unit: dict[str, Any]) -> str:
    """Evaluations, and the first metric of a unit."""
    said = f"NFE {unit['nfe']}"
    name = next(iter(known_metrics(results)), "")
    if (value := unit["metrics"].get(name)) is not None:
        shown = results.metrics[name]
        said += f", {value:.{digits_of(results, name)}f} {shown['unit'] or shown['title']}"
    elif name in unit["infinite"]:
        said += ", identical"
    return said


def _made(results: Results) -> str:
    manifest, settings = results.manifest, results.settings
    facts = {
        "model": results.model,
        "call": _listed(settings["call"]),
        "environment": _listed(settings["environment"]),
        "machine": _listed({k: v for k, v in _last_run(manifest).items() if k in ("system", "python")}),
        "pipeline": f"SHA-256 {settings['pipeline'][:16]}… of its parts and of values sampled from its weights",
        "seeds": ", ".join(map(str, manifest.get("seeds", []))),
        **{results.metrics[name]["title"]: results.metrics[name]["source"] for name in known_metrics(results)},
        **{row["label"]: _listed(row["options"]) for row in results.rows if row["method"]},
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    command = manifest.get("command", "")
    shown = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return section("How this was made", shown, f"<dl>{listed}</dl>")


def _last_run(manifest: dict[str, Any]) -> dict[str, Any]:
    runs = manifest.get("runs") or [{}]
    return dict(runs[-1])


def _listed(values: dict[str, Any]) -> str:
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
