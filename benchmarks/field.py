"""Every method on the model that ships, at comparable cost, and the paper's claims: real re-sampling, in PSNR.

python -m benchmarks.field [cost claims] [--pairs 32] [--write docs/methods.md]

Cost is counted, not promised: the FLOP of all denoiser calls, in whole evaluations. Each row's pictures are measured
once and kept in build/field, so that a run that was cut off goes on; times are taken in turns, at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

import spectrum_diffusion
from spectrum_diffusion.atomic import written
from spectrum_diffusion.errors import SpectrumError

from .forecastability import PROMPTS, draw, psnr, replace_block

CACHE = Path(__file__).parents[1] / "build" / "field"
TIMED_CASES = 5
COUNTED_CASES = 3


@dataclass(frozen=True)
class Row:
    """A method with its options."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        options = ", ".join(f"{name} {_short(value)}" for name, value in self.options.items())
        return f"`{self.method}`" + (f" {options}" if options else "")


@dataclass(frozen=True)
class Table:
    """Rows that are to be compared with each other; ``block`` names the marks in the Markdown file."""

    block: str
    caption: str
    rows: tuple[Row, ...]
    baseline: Row
    timed: bool = False


@dataclass
class Result:
    """What a row gave; PSNR of each pair in dB, cost in whole evaluations, memory of the kept features in MiB."""

    psnr: list[float]
    nfe: float
    evaluations: float
    memory: float
    seconds: float | None = None
    error: str | None = None


def fewer(nfe: int) -> Row:
    """The rival that every user has: as many steps of the same sampler."""
    return Row("fewer-steps", {"speedup": 50 / nfe})


LITE = {"taylor_factors_dtype": "float32", "use_lite_mode": True}
"""diffusers' TaylorSeer after the last block; per module it leaves out less than half of a FLUX block's work."""

COST: tuple[Table, ...] = (
    Table(
        "cost14",
        "about the cost of 14 evaluations",
        (
            Row("paper"),
            Row("spectrum"),
            Row("spectrum", {"warmup": 2, "slope": 0.41}),
            Row("taylor"),
            Row("reuse"),
            Row("fora"),
            Row("taylorseer", {"interval": 5}),
            Row("taylorseer", {"interval": 5, "order": 2}),
            Row("taylorseer", {"interval": 5, "site": "last_block"}),
            Row("hicache", {"interval": 5}),
            Row("teacache", {"threshold": 0.18}),
            Row("magcache", {"threshold": 0.17, "limit": 10, "retention": 0.04}),
            Row("easycache", {"threshold": 0.186, "warmup": 3}),
            Row("first-block-cache", {"threshold": 0.265}),
            Row("toca", {"interval": 6}),
            Row("fewer-steps", {"speedup": 50 / 14, "solver": "unipc"}),
            Row("diffusers:taylorseer", {"cache_interval": 5, **LITE}),
            Row("diffusers:fbc", {"threshold": 0.3}),
            Row("cache-dit:taylorseer", {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.5}),
        ),
        fewer(14),
        timed=True,
    ),
    Table(
        "cost10",
        "about the cost of 10 evaluations",
        (
            Row("paper", {"slope": 3.0}),
            Row("spectrum", {"slope": 3.0}),
            Row("spectrum", {"warmup": 2, "slope": 1.14}),
            Row("taylor", {"slope": 3.0}),
            Row("reuse", {"slope": 3.0}),
            Row("fora", {"interval": 6}),
            Row("taylorseer", {"interval": 8}),
            Row("taylorseer", {"interval": 8, "order": 2}),
            Row("taylorseer", {"interval": 8, "site": "last_block"}),
            Row("hicache", {"interval": 8}),
            Row("teacache", {"threshold": 0.2785}),
            Row("magcache", {"threshold": 0.35, "limit": 10, "retention": 0.04}),
            Row("easycache", {"threshold": 0.352, "warmup": 3}),
            Row("toca", {"interval": 10, "ratio": 0.05}),
            Row("fewer-steps", {"speedup": 5.0, "solver": "unipc"}),
            Row("diffusers:taylorseer", {"cache_interval": 8, **LITE}),
        ),
        fewer(10),
        timed=True,
    ),
)

CLAIMS: tuple[Table, ...] = (
    Table(
        "orders",
        "Taylor of order 1 and 2, per module, as the distance N grows (uniform, W 5)",
        tuple(Row("taylorseer", {"interval": n, "order": o}) for n in (2, 4, 6, 8) for o in (1, 2)),
        fewer(10),
    ),
    Table(
        "ridge",
        "λ of the paper's method (α 0.75 and 3)",
        tuple(Row("paper", {"ridge": r, "slope": s}) for s in (0.75, 3.0) for r in (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0)),
        fewer(10),
    ),
    Table(
        "degree",
        "M of the paper's method (α 0.75 and 3)",
        tuple(Row("paper", {"degree": m, "slope": s}) for s in (0.75, 3.0) for m in (1, 2, 3, 4, 5, 6)),
        fewer(10),
    ),
    Table(
        "adaptive",
        "adaptive (α 3) against uniform (N 8), both 10 evaluations with W 5",
        tuple(
            Row(name, {"interval": n, "slope": s})
            for name in ("taylor", "paper", "spectrum")
            for n, s in ((2, 3.0), (8, 0.0))
        ),
        fewer(10),
    ),
    Table(
        "sites",
        "last block against per module (uniform N 4 and 6, W 5)",
        tuple(
            Row(name, {"interval": n, "slope": 0.0, "site": site})
            for n in (4, 6)
            for name in ("taylor", "paper")
            for site in ("last_block", "module", "output")
        ),
        fewer(12),
    ),
    Table(
        "axes",
        "the axis of time (α 0.75 and 3)",
        tuple(
            Row(name, {"time": t, "slope": s})
            for s in (0.75, 3.0)
            for name in ("paper", "spectrum", "taylor")
            for t in ("index", "sigma", "log-snr")
        ),
        fewer(10),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["cost", "claims"], help="cost, claims, or names of tables")
    parser.add_argument("--pairs", type=int, default=32, help="prompt and seed pairs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", nargs="*", default=[], help="Markdown files whose marked blocks are replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.pairs)
    for table in chosen(arguments.what):
        text = markdown(table, bench.measure(table), arguments.pairs)
        print(f"\n{table.caption}\n\n{text}", flush=True)
        for name in arguments.write:
            replace_block(Path(name), text, table.block)


def chosen(names: list[str]) -> Iterable[Table]:
    tables = {table.block: table for table in (*COST, *CLAIMS)}
    groups = {"cost": COST, "claims": CLAIMS}
    for name in names:
        yield from groups[name] if name in groups else (tables[name],)


class Bench:
    """The pipeline, the cases and their 50-step pictures; results of rows are read back where they are known."""

    def __init__(self, pairs: int) -> None:
        self.pipe = spectrum_diffusion.load_default_pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        prompts = [prompt for prompt in PROMPTS.read_text(encoding="utf-8").split("\n") if prompt]
        self.cases = [(prompts[i * len(prompts) // pairs], i) for i in range(pairs)]
        self.references = [draw(self.pipe, *case) for case in self.cases]

    def measure(self, table: Table) -> dict[str, Result]:
        """Results by label, the table's baseline first."""
        rows = {row.label: row for row in (table.baseline, *table.rows)}
        results = {label: self._known(row) for label, row in rows.items()}
        if table.timed:
            for label, seconds in self._times([rows[label] for label in rows if not results[label].error]).items():
                results[label].seconds = seconds
        return results

    def _known(self, row: Row) -> Result:
        key = hashlib.sha256(json.dumps([row.method, row.options, self.cases], sort_keys=True).encode()).hexdigest()
        path = CACHE / f"{key[:16]}.json"
        if not path.exists():
            result = json.dumps(asdict(self._measure(row)))
            CACHE.mkdir(parents=True, exist_ok=True)
            with written(path) as temporary:
                temporary.write_text(result, encoding="utf-8")
        return Result(**json.loads(path.read_text(encoding="utf-8")))

    def _measure(self, row: Row) -> Result:
        print(f"{row.label} …", file=sys.stderr, flush=True)
        likeness, counts, memory = [], [], 0
        try:
            with spectrum_diffusion.enable(self.pipe, row.method, **row.options) as handle:
                for case, reference in zip(self.cases, self.references, strict=True):
                    likeness.append(psnr(draw(self.pipe, *case), reference))
                    counts.append(handle.summary().nfe)
                    memory = max(memory, handle.summary().history_bytes)
            return Result(likeness, statistics.fmean(counts), self._cost(row), memory / 2**20)
        except SpectrumError as error:
            return Result([], 0.0, 0.0, 0.0, error=str(error))

    def _cost(self, row: Row) -> float:
        """FLOP of all denoiser calls in whole evaluations, mean over the first pairs."""
        costs = []
        with spectrum_diffusion.enable(self.pipe, row.method, flops=True, **row.options) as handle:
            for case in self.cases[:COUNTED_CASES]:
                draw(self.pipe, *case)
                flops = handle.summary().flops
                assert flops is not None
                costs.append(flops.evaluations)
        return statistics.fmean(costs)

    def _times(self, rows: list[Row]) -> dict[str, float]:
        """Seconds a picture by label, median; the rows take turns, so that a busy machine slows all alike."""
        seconds: dict[str, list[float]] = {row.label: [] for row in rows}
        for case in self.cases[:TIMED_CASES]:
            for row in rows:
                with spectrum_diffusion.enable(self.pipe, row.method, **row.options):
                    begin = time.perf_counter()
                    draw(self.pipe, *case)
                    seconds[row.label].append(time.perf_counter() - begin)
        return {label: statistics.median(values) for label, values in seconds.items()}


def markdown(table: Table, results: dict[str, Result], pairs: int) -> str:
    baseline = results[table.baseline.label]
    head = ["method", "NFE", "cost", "memory", "PSNR", "ahead"]
    if table.timed:
        head.insert(3, "time")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, result in results.items():
        cells = _cells(result, baseline, table.timed, foreign=":" in label)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", f"{LEGEND} {_provenance(table.block, pairs)}"]
    return "\n".join(lines)


LEGEND = (
    "Cost: FLOP of the denoiser's calls in whole evaluations. Memory: kept features at their peak (of other packages "
    "not known). PSNR: mean in dB to the 50-step pictures ± standard deviation of single pictures. Ahead: pairs in "
    "which it is above the first row."
)


def _cells(result: Result, baseline: Result, timed: bool, foreign: bool) -> list[str]:
    if result.error:
        return ["–"] * (4 if timed else 3) + [result.error, "–"]
    ahead = sum(a > b for a, b in zip(result.psnr, baseline.psnr, strict=True))
    cells = [
        f"{result.nfe:.3g}",
        f"{result.evaluations:.1f}",
        "–" if foreign else f"{result.memory:.2f} MiB",
        f"{np.mean(result.psnr):.1f} ± {np.std(result.psnr):.1f}",
        "–" if result is baseline else f"{ahead} of {len(result.psnr)}",
    ]
    if timed:
        cells.insert(2, f"{result.seconds:.2f} s")
    return cells


def _provenance(block: str, pairs: int) -> str:
    return (
        f"{pairs} prompt and seed pairs; `python -m benchmarks.field {block} --pairs {pairs}`, {platform.machine()} "
        f"CPU, float32, PyTorch {torch.__version__}, diffusers {diffusers.__version__}."
    )


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} numbers]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
