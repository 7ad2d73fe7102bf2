"""The tables of docs/results that `spectrum reproduce` does not write: default, orders, sites, time axes, late steps …

python -m benchmarks.field [default-14 orders …] [--pairs 16] [--write docs/results]

`evaluate` does the work in build/field, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectrum_diffusion.bench.evaluate import Request, Row, evaluate
from spectrum_diffusion.bench.evaluate.tables import markdown
from spectrum_diffusion.bench.prompts import load_prompts, spread

from .marks import replace_block
from .small_models import BUILD, load

FOLDER = BUILD / "field"
LITE = {"taylor_factors_dtype": "float32", "use_lite_mode": True}
"""diffusers' TaylorSeer after the last block. Per module it skips less than half of the work of a FLUX block."""


def _row(method: str, **options: Any) -> Row:
    shown = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in options.items()
    )
    return Row(method, options, f"{method} {shown}".strip())


@dataclass(frozen=True)
class Table:
    """A comparison: its page, its rows, the small model, and the arguments of the pipeline's call."""

    page: str
    rows: tuple[Row, ...]
    model: str = "tiny-flux"
    call: Mapping[str, Any] = field(default_factory=dict)


LATE = (0, 1, 2, 4, 7, 11, 16, 22, 28, 34, 39, 43, 46, 48)
"""Also 14 evaluated steps, fewer of them early and more of them late."""
SCHEDULES = (
    _row("fewer-steps", speedup=50 / 14),
    _row("reuse"),
    *(
        row
        for method in ("paper", "spectrum-blend")
        for row in (_row(method), Row(method, {"evaluated": LATE}, f"{method} late"))
    ),
)


SLOPES = {14: {5: 0.75, 2: 0.41}, 10: {5: 3.0, 2: 1.14}}
"""Slope, by number of evaluations and warm-up."""
FORECASTS: tuple[tuple[str, dict[str, int]], ...] = (
    ("reuse", {}),
    ("taylor", {"order": 1}),
    ("taylor", {"order": 2}),
    ("paper", {}),
    ("spectrum-blend", {}),
    ("spectrum-blend", {"warmup": 2}),
)


TABLES: dict[str, Table] = {
    **{
        f"default-{nfe}": Table(
            "default.md",
            (
                _row("fewer-steps", speedup=50 / nfe),
                *(
                    _row(method, **options, slope=slopes[options.get("warmup", 5)], site=site)
                    for site in ("last_block", "output")
                    for method, options in FORECASTS
                ),
            ),
        )
        for nfe, slopes in SLOPES.items()
    },
    "orders": Table(
        "orders.md",
        tuple(_row("taylorseer", interval=n, order=o) for n in (2, 4, 6, 8) for o in (1, 2))
        + tuple(_row("taylor", slope=s, order=o) for s in (0.75, 3.0) for o in (1, 2)),
    ),
    "sites": Table(
        "sites.md",
        tuple(
            _row(method, interval=6, slope=0.0, site=site)
            for method in ("taylor", "paper")
            for site in ("last_block", "module", "output")
        ),
    ),
    "axes": Table(
        "time-axis.md",
        tuple(
            _row(method, time=time, slope=slope)
            for slope in (0.75, 3.0)
            for method in ("paper", "spectrum-blend", "taylor")
            for time in ("index", "sigma", "log-snr")
        ),
    ),
    "external-psnr": Table(
        "other-packages.md",
        (
            _row("taylorseer", interval=5, site="last_block"),
            _row("diffusers:taylorseer", cache_interval=5, **LITE),
            _row("first-block-cache", threshold=0.3),
            _row("diffusers:fbc", threshold=0.3),
            _row("cache-dit:taylorseer", Fn_compute_blocks=1, residual_diff_threshold=0.5),
        ),
    ),
    "guidance-4": Table("guidance.md", SCHEDULES, "tiny-sd3", {"guidance_scale": 4.0}),
    "guidance-1": Table("guidance.md", SCHEDULES, "tiny-sd3", {"guidance_scale": 1.0}),
}
"""Tables by the names of their marks in the pages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"{', '.join(TABLES)}; default: all")
    parser.add_argument("--pairs", type=int, default=16, help="number of prompts, with seed 0 each")
    parser.add_argument("--write", type=Path, help="folder of the pages, whose marked blocks are replaced")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"table {', '.join(sorted(unknown))} is unknown: choose among {', '.join(TABLES)}")
    prompts = tuple(spread(load_prompts("tiny"), arguments.pairs))
    for name in arguments.tables or TABLES:
        table = TABLES[name]
        pipe = load(table.model)
        command = f"python -m benchmarks.field {name} --pairs {arguments.pairs}"
        request = Request(
            model=table.model,
            rows=table.rows,
            prompts=prompts,
            call=table.call,
            metrics=("psnr", "ssim"),
            command=command,
        )
        results = evaluate(pipe, request, FOLDER / name)
        versions = ", ".join(f"{key} {value}" for key, value in results.settings["environment"].items())
        text = f"{markdown(results)}\n`{command}`; {versions}."
        print(f"\n{text}", flush=True)
        if arguments.write:
            replace_block(arguments.write / table.page, text, name)


if __name__ == "__main__":
    main()
