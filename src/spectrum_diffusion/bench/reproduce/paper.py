"""The paper's experiments as data: models (`models.csv`), tables (`tables.csv`), settings, and numbers
(`paper.csv`).

A setting is a method with its options. The same settings run on the full-size models and on the small ones of the same
architectures. A number that the paper's text does not give is missing here too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Model:
    """A model of the paper, and the small trained one of its architecture.

    Attributes:
        name: the paper's name for it.
        real: id on the Hub; empty for a small model without a counterpart in the paper.
        tiny: name of the small model.
        call: options of the full-size pipeline's call; the small models keep their own defaults.
        video: whether it generates videos.
    """

    name: str
    real: str
    tiny: str
    call: Mapping[str, Any]
    video: bool = False


def read_table(file: str) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file beside this module."""
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _model(row: Mapping[str, str]) -> Model:
    call = {name: json.loads(value) for name, value in row.items() if name in CALL and value}
    return Model(row["name"], row["real"], row["tiny"], call, video=bool(row["num_frames"]))


CALL = ("height", "width", "num_frames", "guidance_scale", "num_inference_steps")
MODELS: dict[str, Model] = {row["key"]: _model(row) for row in read_table("models.csv")}
"""SDXL is only in the paper's figures, so the paper has no numbers for it."""

SEED = 42
"""The seed of the paper's images. Small models use 0."""


@dataclass(frozen=True)
class Setting:
    """A row of the paper's tables, and how to find it in `paper.csv`; :mod:`.rows` makes a row of an evaluation of it.

    Attributes:
        label: the paper's name for the row.
        method, options: what to enable.
        nfe: evaluations of 50 steps by the paper's Table 6; None for an adaptive method.
        row: the columns of `paper.csv` that identify its numbers.
        which: index among the rows that these columns can't distinguish: TeaCache's slow row, then its fast one.
        tuned: the mean number of evaluations for which the threshold is calibrated on each model.
        cell: row and column in a sweep.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    nfe: int | None = None
    row: Mapping[str, str] = field(default_factory=dict)
    which: int | None = None
    tuned: int | None = None
    cell: tuple[str, str] | None = None


SLOPES = {14: 0.75, 13: 1.0, 12: 1.5, 11: 2.0, 10: 3.0}
"""α by evaluations, N 2 and W 5. The paper's own are 0.75 and 3; its figures have five, of which its text names two."""


def _fewer(steps: int) -> Setting:
    return Setting(f"{steps} steps", "fewer-steps", {"speedup": 50 / steps}, steps, {"method": f"{steps} steps"})


def _scheduled(label: str, method: str, nfe: int, **options: Any) -> Setting:
    """A row identified by its schedule and order."""
    known: dict[str, str] = {
        name: f"{options[name]:g}" for name in ("interval", "warmup", "slope", "order") if name in options
    }
    return Setting(f"{label} N {options['interval']}", method, options, nfe, {"method": label, **known})


def _fora(interval: int, nfe: int) -> Setting:
    return _scheduled("FORA", "fora", nfe, interval=interval, warmup=1)


def _toca(interval: int, nfe: int) -> Setting:
    return _scheduled("ToCa", "toca", nfe, interval=interval, warmup=3)


def _taylorseer(interval: int, nfe: int, order: int = 1) -> Setting:
    setting = _scheduled("TaylorSeer", "taylorseer", nfe, interval=interval, warmup=5, slope=0.0, order=order)
    return replace(setting, label=f"TaylorSeer N {interval} O {order}")


def _teacache(nfe: int, which: int) -> Setting:
    """The paper's text gives no thresholds and no evaluations of TeaCache, so it gets as many as Spectrum."""
    return Setting(f"TeaCache at {nfe}", "teacache", {}, None, {"method": "TeaCache"}, which, tuned=nfe)


def _spectrum(nfe: int, **options: Any) -> Setting:
    slope = SLOPES[nfe]
    row = {"method": "Spectrum", "interval": "2", "slope": f"{slope:g}"}
    swept = "".join(f", {name} {value:g}" for name, value in options.items())
    return Setting(f"Spectrum α {slope:g}{swept}", "paper", {"slope": slope, **options}, nfe, row)


SLOW = (
    _fewer(15),
    _fora(4, 13),
    _toca(4, 14),
    _teacache(14, 0),
    _taylorseer(4, 16),
    _taylorseer(4, 16, order=2),
    _spectrum(14),
)
FAST = (
    _fora(6, 9),
    _toca(6, 10),
    _teacache(10, 1),
    _taylorseer(6, 12),
    _taylorseer(6, 12, order=2),
    _spectrum(10),
)
MAIN = (_fewer(25), *SLOW, *FAST)


def _first_order(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    return tuple(setting for setting in settings if setting.options.get("order") != 2)


def _for_u_nets(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """ToCa and TeaCache need a transformer."""
    return tuple(setting for setting in settings if setting.method not in ("toca", "teacache"))


ADAPTIVE = (
    Setting(
        "Taylor uniform",
        "taylorseer",
        {"interval": 8, "site": "last_block"},
        10,
        {"method": "TaylorSeer", "interval": "8"},
    ),
    Setting(
        "Taylor adaptive",
        "taylorseer",
        {"interval": 2, "slope": 3.0, "site": "last_block"},
        10,
        {"method": "TaylorSeer", "interval": "2"},
    ),
    Setting("Spectrum uniform", "paper", {"interval": 8, "slope": 0.0}, 10, {"method": "Spectrum", "interval": "8"}),
    Setting("Spectrum adaptive", "paper", {"slope": 3.0}, 10, {"method": "Spectrum", "interval": "2"}),
)

SITE_ROWS = tuple(
    Setting(
        f"{label} {site.replace('_', ' ')}",
        method,
        {"interval": 6, "slope": 0.0, "site": site},
        12,
        {"method": label, "site": site},
    )
    for label, method in (("TaylorSeer", "taylorseer"), ("Spectrum", "paper"))
    for site in ("module", "last_block")
)
"""The text of Table 4 does not give the N of its uniform schedule; here it is N 6 with W 5."""

DEFAULTS = {"ridge": 0.1, "degree": 4}


def _sweep(name: str, sign: str, values: tuple[float, ...]) -> tuple[Setting, ...]:
    """The paper's schedules with other values of an option. Its default gives rows that other tables share."""
    return tuple(
        replace(
            _spectrum(nfe) if value == DEFAULTS[name] else _spectrum(nfe, **{name: value}),
            cell=(f"{sign} {value:g}", f"α {slope:g} ({nfe})"),
        )
        for value in values
        for nfe, slope in SLOPES.items()
    )


def _budgets() -> tuple[Setting, ...]:
    """Quality against evaluations. Our text of the paper lacks Figure 10's settings; here, slopes of three methods."""
    settings = []
    for nfe, slope in SLOPES.items():
        taylor = {"slope": slope, "interval": 2, "site": "last_block"}
        settings += [
            replace(_fewer(nfe), cell=("fewer steps", f"{nfe}")),
            Setting(f"Taylor α {slope:g}", "taylorseer", taylor, nfe, cell=("Taylor, last block", f"{nfe}")),
            replace(_spectrum(nfe), cell=("Spectrum", f"{nfe}")),
        ]
    return tuple(settings)


def _every_method(nfe: int) -> tuple[Setting, ...]:
    """Every method with that many evaluations, or with its nearest published setting."""
    slow = nfe == 14
    interval = 4 if slow else 6
    speedup: dict[str, Any] = {"speedup": 50 / nfe}
    uniform: dict[str, Any] = {"interval": 5 if slow else 8, "warmup": 5, "slope": 0.0}

    def at(label: str, method: str, count: int | None = nfe, **options: Any) -> Setting:
        return Setting(f"{label} at {nfe}", method, options, count, cell=(label, f"{nfe}"))

    def tuned(label: str, method: str, **options: Any) -> Setting:
        return replace(at(label, method, None, **options), tuned=nfe)

    return (
        replace(_fewer(nfe), cell=("fewer steps", f"{nfe}")),
        at("fewer steps, UniPC", "fewer-steps", **speedup, solver="unipc"),
        at("reuse", "reuse", **speedup),
        replace(_fora(interval, 13 if slow else 9), cell=("FORA", f"{nfe}")),
        replace(_toca(interval, nfe), cell=("ToCa", f"{nfe}")),
        at("DeepCache", "deepcache", 13 if slow else 9, interval=interval),
        at("TaylorSeer order 1", "taylorseer", **uniform, order=1),
        at("TaylorSeer order 2", "taylorseer", **uniform, order=2),
        at("TaylorSeer, last block", "taylorseer", **uniform, site="last_block"),
        at("HiCache", "hicache", **uniform),
        at("Taylor, adaptive, last block", "taylor", **speedup),
        replace(_spectrum(nfe), cell=("Spectrum, the paper's", f"{nfe}")),
        at("spectrum", "spectrum", **speedup),
        at("spectrum, sampler site", "spectrum", **speedup, site="sampler"),
        at("spectrum-blend", "spectrum-blend", **speedup),
        at("spectrum-blend, warm-up 2", "spectrum-blend", warmup=2, slope=0.41 if slow else 1.14),
        at("spectrum-blend, uniform", "spectrum-blend", **uniform),
        tuned("TeaCache", "teacache"),
        tuned("MagCache", "magcache", limit=10, retention=0.04),  # the published options need at least 12 evaluations
        tuned("first-block cache", "first-block-cache"),
        tuned("EasyCache", "easycache", warmup=3),
    )


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper: what is measured on which models.

    Attributes:
        title: what it shows.
        models: keys of :data:`MODELS` on which the paper has it.
        settings: its rows.
        metrics: columns of `paper.csv` that it reports.
        prompts: list for the full-size image models; video models use VBench's, small models their own.
        small: keys of the small models on which it runs; default: ``models``.
        path: steps at which it reports the latents' RMSE instead of metrics.
        sweep: "rows" or "columns" of a table of one number per cell, which are the x axis of its plot; else empty.
        images: how many prompts a figure of images shows; 0 for a table.
    """

    title: str
    models: tuple[str, ...]
    settings: tuple[Setting, ...]
    metrics: tuple[str, ...]
    prompts: str
    small: tuple[str, ...] = ()
    path: tuple[int, ...] = ()
    sweep: str = ""
    images: int = 0

    def on(self, real: bool) -> tuple[str, ...]:
        """Keys of the models on which it runs."""
        return self.models if real else self.small or self.models

    def prompts_for(self, model: Model, real: bool) -> str:
        """The list of prompts for a model."""
        return "tiny" if not real else "vbench" if model.video else self.prompts


ROWS: dict[str, tuple[Setting, ...]] = {
    "main": MAIN,
    "slow": SLOW,
    "fast": FAST,
    "slow and fast": (*SLOW, *FAST),
    "slow of first order": _first_order(SLOW),
    "fast of first order": _first_order(FAST),
    "for U-Nets": _for_u_nets((*SLOW, *FAST)),
    "scheduled": tuple(setting for setting in MAIN if setting.nfe),
    "COCO": tuple(replace(setting, which=0) if setting.tuned else setting for setting in FAST),
    "adaptive": ADAPTIVE,
    "sites": SITE_ROWS,
    "path": (_taylorseer(6, 12), _spectrum(10)),
    "ridge": _sweep("ridge", "λ", (1e-3, 1e-2, 0.1, 1.0, 10.0)),
    "degree": _sweep("degree", "M", (2, 3, 4, 5, 6)),
    "budgets": _budgets(),
    "methods": (*_every_method(14), *_every_method(10)),
}
"""The settings by the names that `tables.csv` gives them."""


def _table(row: Mapping[str, str]) -> Table:
    return Table(
        row["title"],
        tuple(row["models"].split()),
        ROWS[row["rows"]],
        tuple(row["metrics"].split()),
        row["prompts"],
        tuple(row["small"].split()),
        tuple(map(int, row["path"].split())),
        row["sweep"],
        int(row["images"] or 0),
    )


TABLES: dict[str, Table] = {row["name"]: _table(row) for row in read_table("tables.csv")}
"""By name. Figures 3, 4, 7, 8, 9 and 11 show images; our text of the paper lacks their prompts and rows.
"methods" is not from the paper: it shows every method of this package on every model."""

RMSE: dict[tuple[str, str], tuple[float, ...]] = {
    ("table5", "TaylorSeer"): (0.0121, 0.0303, 0.0629, 0.1226, 0.2510),
    ("table5", "Spectrum"): (0.0040, 0.0164, 0.0358, 0.0742, 0.1674),
    ("table8", "TaylorSeer"): (0.0047, 0.0102, 0.0206, 0.0467, 0.1562),
    ("table8", "Spectrum"): (0.0021, 0.0046, 0.0081, 0.0182, 0.0818),
}
"""Tables 5 and 8: latent RMSE against the 50-step run after 10, 20 … 50 steps."""


@cache
def reported() -> tuple[dict[str, str], ...]:
    """The rows of `paper.csv`."""
    return read_table("paper.csv")


def is_reported(table: str, model: Model) -> bool:
    """Whether the paper gives numbers for a table on a model."""
    return any(f"table{row['table']}" == table and row["model"] == model.name for row in reported())


def paper_value(table: str, model: Model, setting: Setting, column: str) -> float | None:
    """The number that the paper reports, or None if its text gives none.

    Raises:
        LookupError: several rows of the paper match the setting.
    """
    matching = [
        row
        for row in reported()
        if f"table{row['table']}" == table
        and row["model"] == model.name
        and all(row[name] == value for name, value in setting.row.items())
    ]
    if len(matching) > 1 and setting.which is None:
        raise LookupError(f"{len(matching)} rows of {table} match {setting.label} on {model.name}")
    value = matching[setting.which or 0].get(column, "") if matching else ""
    return float(value) if value else None
