"""What ``compare`` makes of an evaluation: a grid of its images, and a line of cost and similarity for each method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods import METHODS
from .evaluate import REFERENCE, Here, Request, Results, evaluation
from .evaluate.store import Store
from .evaluate.work import OnUnit
from .grid import Column, make_grid
from .metrics import METRICS, average

if TYPE_CHECKING:
    from PIL.Image import Image

SIMILARITY = ("psnr", "ssim")


def compare(pipe: Any, request: Request, folder: Path, on_unit: OnUnit | None = None) -> Comparison:
    """Evaluate without counting operations, and with the metrics of similarity that are available."""
    available = tuple(name for name in SIMILARITY if not METRICS[name].available())
    with evaluation(Here(pipe), replace(request, metrics=available, flops=False), folder, on_unit) as results:
        return Comparison(results)


class Comparison:
    """The results of an evaluation as a grid and as lines. The first method is the untouched pipeline."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._units: dict[str, list[dict[str, Any]]] = {row["label"]: [] for row in results.rows}
        for unit in results.units:
            self._units[unit["row"]].append(unit)

    @property
    def references(self) -> list[dict[str, Any]]:
        """The units of the untouched pipeline, one for each prompt and seed."""
        return self._units[REFERENCE]

    @property
    def steps(self) -> int:
        """Number of steps of the untouched pipeline."""
        return int(self.references[0]["steps"])

    @property
    def frames(self) -> int:
        """Number of frames of each sample: 1 for an image."""
        return int(self.references[0]["frames"])

    def grid(self, frame: int | None = None) -> Image:
        """A row for each prompt and seed, a column for each method; of videos the given frame, or the middle one."""
        has_seeds = len({unit["seed"] for unit in self.references}) > 1
        names = [f"{unit['prompt']}, seed {unit['seed']}" if has_seeds else unit["prompt"] for unit in self.references]
        place = self.frames // 2 if frame is None else frame
        return make_grid(names, [self._column(row, place) for row in self.results.rows])

    @cached_property
    def _samples(self) -> dict[str, list[list[Image]]]:
        """The frames of each sample by label, read once for all frames of a grid."""
        store = Store(self.results.folder)
        return {label: [store.read_frames(unit["file"]) for unit in units] for label, units in self._units.items()}

    def _column(self, row: Mapping[str, Any], frame: int) -> Column:
        line = self._line(row)
        cells: list[Image | str] = [sample[frame] for sample in self._samples[row["label"]]]
        missing = len(self.references) - len(cells)
        subtitle = "failed" if row["error"] else "–" if line["nfe"] is None else f"NFE {line['nfe']}"
        if line["psnr"] is not None:
            subtitle += f", {line['psnr']:.1f} dB"
        return Column(row["label"], subtitle, cells + [f"failed: {row['error']}"] * missing)

    def lines(self) -> list[dict[str, Any]]:
        """A JSON-ready line for each method. A PSNR of None is infinite if ``identical``, else unknown."""
        return [self._line(row) for row in self.results.rows]

    def _line(self, row: Mapping[str, Any]) -> dict[str, Any]:
        units = self._units[row["label"]]
        psnr, ssim = _psnr(units), _known(units, "ssim")
        nfe, method = _mean_nfe(units), METHODS[row["method"]] if units and row["method"] else None
        return {
            "method": row["label"],
            "package": {"name": method.package, "version": method.version()} if method and method.package else None,
            "nfe": nfe,
            "evaluated": units[-1]["evaluated"] if method else None,
            "speedup": self.steps / nfe if nfe else None,
            "seconds": row["seconds"],
            "psnr": psnr if psnr is not None and math.isfinite(psnr) else None,
            "ssim": statistics.fmean(ssim) if ssim else None,
            "identical": psnr == math.inf,
            "error": row["error"],
            "pictures": [_sample(unit) for unit in units],
        }


def _sample(unit: Mapping[str, Any]) -> dict[str, Any]:
    similarity = {name: unit["metrics"].get(name) for name in SIMILARITY if unit["row"] != REFERENCE}
    return {"prompt": unit["prompt"], "seed": unit["seed"], "seconds": unit["seconds"], **similarity}


def _psnr(units: list[dict[str, Any]]) -> float | None:
    """The mean over the samples that differ from the reference; infinite if none does."""
    values = _known(units, "psnr") + [math.inf for unit in units if "psnr" in unit["infinite"]]
    return average(values) if values else None


def _known(units: list[dict[str, Any]], metric: str) -> list[float]:
    return [value for unit in units if (value := unit["metrics"].get(metric)) is not None]


def _mean_nfe(units: list[dict[str, Any]]) -> float | None:
    """The mean over the samples: an adaptive method evaluates more steps for some than for others."""
    if not units:
        return None
    mean = statistics.fmean(unit["nfe"] for unit in units)
    return int(mean) if mean.is_integer() else round(mean, 2)
