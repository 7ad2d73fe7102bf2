"""The paper's experiments as data: models, settings, tables, and the numbers that it reports (`paper.csv`).

A setting is a method with its options; the same settings run on the full-size models and on the small ones of the same
architecture. Where the paper's text gives no number, none is given here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Model:
    """A model of the paper, and the small trained one of its architecture.

    Attributes:
        name: as the paper has it.
        real: id on the Hub.
        tiny: name of the small model.
        call: options of the pipeline's call for the full-size model; the small ones keep their own defaults.
        video: whether it makes videos.
    """

    name: str
    real: str
    tiny: str
    call: Mapping[str, Any]
    video: bool = False


MODELS: dict[str, Model] = {
    "flux": Model(
        "FLUX.1-dev",
        "black-forest-labs/FLUX.1-dev",
        "tiny-flux",
        {"height": 1024, "width": 1024, "guidance_scale": 3.5, "num_inference_steps": 50},
    ),
    "sd3": Model(
        "SD3.5-Large",
        "stabilityai/stable-diffusion-3.5-large",
        "tiny-sd3",
        {"height": 1024, "width": 1024, "guidance_scale": 7.0, "num_inference_steps": 50},
    ),
    "wan": Model(
        "Wan2.1-T2V-14B",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "tiny-wan",
        {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0, "num_inference_steps": 50},
        video=True,
    ),
    "hunyuan": Model(
        "HunyuanVideo",
        "hunyuanvideo-community/HunyuanVideo",
        "tiny-hunyuan",
        {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 6.0, "num_inference_steps": 50},
        video=True,
    ),
    "sdxl": Model(
        "SDXL",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "tiny-sdxl",
        {"height": 1024, "width": 1024, "num_inference_steps": 50},
    ),
}
"""SDXL is in the paper's figures only; its row here has no numbers to stand beside."""


@dataclass(frozen=True)
class Setting:
    """A row of a table: a method with its options, and how `paper.csv` knows it.

    Attributes:
        label: as the paper calls the row.
        method, options: what to enable.
        nfe: evaluations of 50 steps by the paper's Table 6; None where the method decides while it runs.
        row: the columns of `paper.csv` by which its numbers are found.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    nfe: int | None = None
    row: Mapping[str, str] = field(default_factory=dict)


def _fewer(steps: int) -> Setting:
    return Setting(f"{steps} steps", "fewer-steps", {"speedup": 50 / steps}, steps, {"method": f"{steps} steps"})


def _scheduled(label: str, method: str, nfe: int, **options: Any) -> Setting:
    """A row that is known by its schedule and order; ``method`` may name another forecaster of ours."""
    known: dict[str, str] = {
        name: f"{options[name]:g}" for name in ("interval", "warmup", "slope", "order") if name in options
    }
    return Setting(f"{label} N {options['interval']}", method, options, nfe, {"method": label, **known})


def _fora(interval: int, nfe: int) -> Setting:
    return _scheduled("FORA", "fora", nfe, interval=interval, warmup=1)


def _toca(interval: int, nfe: int) -> Setting:
    return _scheduled("ToCa", "toca", nfe, interval=interval, warmup=3)


def _taylorseer(interval: int, nfe: int, order: int = 1, **options: Any) -> Setting:
    made = _scheduled("TaylorSeer", "taylorseer", nfe, interval=interval, warmup=5, slope=0.0, order=order, **options)
    return Setting(f"TaylorSeer N {interval} O {order}", made.method, made.options, nfe, made.row)


def _spectrum(slope: float, nfe: int, **options: Any) -> Setting:
    row = {"method": "Spectrum", "interval": "2", "slope": f"{slope:g}"}
    swept = "".join(f", {name} {value:g}" for name, value in options.items())
    return Setting(f"Spectrum α {slope:g}{swept}", "paper", {"slope": slope, **options}, nfe, row)


SLOW = (_fewer(15), _fora(4, 13), _toca(4, 14), _taylorseer(4, 16), _taylorseer(4, 16, order=2), _spectrum(0.75, 14))
FAST = (_fora(6, 9), _toca(6, 10), _taylorseer(6, 12), _taylorseer(6, 12, order=2), _spectrum(3.0, 10))
MAIN = (_fewer(25), *SLOW, *FAST)
NO_SECOND_ORDER = tuple(setting for setting in MAIN if setting.options.get("order") != 2)
"""TeaCache's two rows of the paper are at thresholds that its text doesn't give: see `calibrated` in the command."""

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

SITES = tuple(
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
"""Table 4 is on a uniform schedule whose N its text doesn't give; N 6 with W 5 here."""

PATH = (_taylorseer(6, 12), _spectrum(3.0, 10))


@dataclass(frozen=True)
class Table:
    """A table of the paper: what is measured on which models.

    Attributes:
        title: what it shows.
        models: keys of :data:`MODELS`.
        settings: its rows.
        metrics: names of :data:`metrics.METRICS`, of columns of `paper.csv`.
        prompts: for the full-size models; the small ones take their own list.
        path: whether it is the latent RMSE along the path that is reported, at these steps.
    """

    title: str
    models: tuple[str, ...]
    settings: tuple[Setting, ...]
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips")
    prompts: str = "drawbench"
    path: tuple[int, ...] = ()


TABLES: dict[str, Table] = {
    "table1": Table("text to image", ("flux", "sd3"), MAIN, ("psnr", "ssim", "lpips", "image_reward", "clip_score")),
    "table2": Table(
        "text to video",
        ("wan", "hunyuan"),
        NO_SECOND_ORDER,
        ("psnr", "ssim", "lpips", "vbench_quality"),
        prompts="vbench",
    ),
    "table3": Table("adaptive against uniform, 10 evaluations", ("sd3", "wan"), ADAPTIVE),
    "table4": Table("last block against per module", ("flux",), SITES),
    "table5": Table("latent RMSE along the path", ("flux",), PATH, (), path=(10, 20, 30, 40, 50)),
    "table6": Table("evaluations of every row", ("flux", "sd3", "wan", "hunyuan", "sdxl"), MAIN, ()),
    "table7": Table("COCO 2017 captions", ("flux",), FAST, prompts="coco"),
    "table8": Table("latent RMSE along the path", ("hunyuan",), PATH, (), prompts="vbench", path=(10, 20, 30, 40, 50)),
    "fig5": Table(
        "λ of the ridge",
        ("flux", "sd3"),
        tuple(_spectrum(s, n, ridge=r) for s, n in ((0.75, 14), (3.0, 10)) for r in (1e-3, 1e-2, 0.1, 1.0, 10.0)),
        ("psnr",),
    ),
    "fig6": Table(
        "degree M of the basis",
        ("flux", "sd3"),
        tuple(_spectrum(s, n, degree=m) for s, n in ((0.75, 14), (3.0, 10)) for m in (2, 3, 4, 5, 6)),
        ("psnr",),
    ),
}

RMSE: dict[tuple[str, str], tuple[float, ...]] = {
    ("table5", "TaylorSeer"): (0.0121, 0.0303, 0.0629, 0.1226, 0.2510),
    ("table5", "Spectrum"): (0.0040, 0.0164, 0.0358, 0.0742, 0.1674),
    ("table8", "TaylorSeer"): (0.0047, 0.0102, 0.0206, 0.0467, 0.1562),
    ("table8", "Spectrum"): (0.0021, 0.0046, 0.0081, 0.0182, 0.0818),
}
"""Tables 5 and 8: latent RMSE to the 50-step run after 10, 20 … 50 steps."""


@cache
def reported() -> tuple[dict[str, str], ...]:
    """The rows of `paper.csv`."""
    text = resources.files(__package__).joinpath("paper.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def paper_value(table: str, model: Model, setting: Setting, column: str) -> float | None:
    """The number that the paper reports, or None where its text gives none.

    Raises:
        LookupError: several rows of the paper fit the setting.
    """
    fitting = [
        row
        for row in reported()
        if f"table{row['table']}" == table
        and row["model"] == model.name
        and all(row[name] == value for name, value in setting.row.items())
    ]
    if len(fitting) > 1:
        raise LookupError(f"{len(fitting)} rows of {table} fit {setting.label} on {model.name}")
    value = fitting[0].get(column, "") if fitting else ""
    return float(value) if value else None
