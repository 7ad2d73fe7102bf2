"""The untouched pipeline beside several methods: pictures, evaluations, time and likeness."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..cli.guard import FailureError
from ..cli.request import MethodSpec, Request
from ..core.words import counted_name
from ..errors import SpectrumError
from .grid import Column, make_grid
from .metrics import METRICS, average
from .sampling import Drawing, draw, steps_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

log = logging.getLogger(__name__)

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Likeness:
    """Of a picture to the reference's: PSNR in dB (infinite if equal), SSIM (None where it can't be computed)."""

    psnr: float
    ssim: float | None


@dataclass
class Row:
    """One method's pictures, in the order of the cases; ``error`` is why it has none."""

    label: str
    drawings: list[Drawing] = field(default_factory=list)
    likeness: list[Likeness] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> float | None:
        return statistics.median(d.seconds for d in self.drawings) if self.drawings else None

    @property
    def psnr(self) -> float | None:
        """Mean over the pictures that differ from the reference's; infinite if none does."""
        return average(one.psnr for one in self.likeness) if self.likeness else None

    @property
    def ssim(self) -> float | None:
        known = [one.ssim for one in self.likeness if one.ssim is not None]
        return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """The first row is the untouched pipeline; a case is a prompt and a seed."""

    request: Request
    cases: list[tuple[str, int]]
    steps: int | None
    rows: list[Row]

    @property
    def failures(self) -> dict[str, str]:
        """Reasons by method."""
        return {row.label: row.error for row in self.rows if row.error is not None}


def compare(
    pipe: Any, request: Request, specs: tuple[MethodSpec, ...], on_picture: Callable[[str], None]
) -> Comparison:
    """Draw every case with the untouched pipeline, then with each method: a busy machine slows all alike.

    A method that fails is left out from there on, with its reason; the reference's failure is everybody's.
    """
    cases = [(prompt, seed) for prompt in request.prompts for seed in request.seeds]
    reference, rows = Row("reference"), [Row(spec.label) for spec in specs]
    _warm_up(pipe, request)
    for prompt, seed in cases:
        reference.drawings.append(drawn := draw(pipe, request, prompt, seed, None))
        on_picture(reference.label)
        for row, spec in zip(rows, specs, strict=True):
            if row.error is None:
                _add(row, pipe, request, prompt, seed, spec, drawn)
            on_picture(row.label)
    return Comparison(request, cases, steps_of(pipe, request), [reference, *rows])


def _warm_up(pipe: Any, request: Request) -> None:
    """Draw something first: the first call of a process pays for what the others find ready."""
    steps = steps_of(pipe, request)
    short = replace(request, steps=min(steps, WARM_UP_STEPS)) if steps else request
    draw(pipe, short, request.prompts[0], request.seeds[0], None)


def _add(row: Row, pipe: Any, request: Request, prompt: str, seed: int, spec: MethodSpec, reference: Drawing) -> None:
    try:
        drawing = draw(pipe, request, prompt, seed, spec)
        row.likeness.append(likeness(drawing.frames, reference.frames))
        row.drawings.append(drawing)
    except (SpectrumError, FailureError, RuntimeError, ValueError) as error:
        row.error = str(error)
        log.debug("%s failed", spec.label, exc_info=error)


def likeness(frames: list[Image], reference: list[Image]) -> Likeness:
    """PSNR and SSIM of pictures as floats in [0, 1]; of a video the mean over its frames."""
    psnr, ssim = METRICS["psnr"], METRICS["ssim"]
    without_ssim = ssim.available() or min(frames[0].size) < ssim.smallest
    return Likeness(
        psnr.compare(frames, reference),
        None if without_ssim else ssim.compare(frames, reference),
    )


def frames_of(comparison: Comparison) -> int:
    """Frames of each drawing: 1 of a picture."""
    return len(comparison.rows[0].drawings[0].frames)


def grid_of(comparison: Comparison, frame: int | None = None) -> Image:
    """Rows are the cases, columns the reference and the methods; of a video the frame, the middle one for None."""
    place = frames_of(comparison) // 2 if frame is None else frame
    several = len(comparison.request.seeds) > 1
    names = [f"{prompt}, seed {seed}" if several else prompt for prompt, seed in comparison.cases]
    return make_grid(names, [_column(comparison, row, place) for row in comparison.rows])


def _column(comparison: Comparison, row: Row, frame: int) -> Column:
    pictures: list[Image | str] = [d.frames[frame] for d in row.drawings]
    missing = len(comparison.cases) - len(pictures)
    nfe = _nfe(comparison, row)
    subtitle = "failed" if row.error else "–" if nfe is None else f"NFE {nfe}"
    if row.psnr is not None and math.isfinite(row.psnr):
        subtitle += f", {row.psnr:.1f} dB"
    return Column(row.label, subtitle, pictures + [f"failed: {row.error}"] * missing)


def table_of(comparison: Comparison) -> Table:
    """NFE, time and likeness of each method."""
    from rich.table import Table

    drawn = "video" if frames_of(comparison) > 1 else "picture"
    count = counted_name(len(comparison.cases), drawn)
    table = Table(title=f"{comparison.request.model}, {comparison.steps or '?'} steps, {count}")
    table.add_column("method", overflow="fold")
    for name in ("NFE", f"s/{drawn}", "evaluations", "PSNR dB", "SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*_cells(comparison, row))
    return table


def _cells(comparison: Comparison, row: Row) -> list[str]:
    nfe, speedup = _nfe(comparison, row), _speedup(comparison, row)
    return [
        f"{row.label} (failed)" if row.error else row.label,
        "–" if nfe is None else str(nfe),
        _number(row.seconds, ".2f"),
        _number(speedup, ".2f", "x fewer"),
        _number(row.psnr, ".2f"),
        _number(row.ssim, ".4f"),
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{form}}{unit}" if math.isfinite(value) else "∞"


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready results. A PSNR of null is infinite if ``identical``, else not known."""
    return {
        **asdict(comparison.request),
        "steps": comparison.steps,
        "methods": [_row_dict(comparison, row) for row in comparison.rows],
    }


def _row_dict(comparison: Comparison, row: Row) -> dict[str, Any]:
    likeness: Sequence[Likeness | None] = row.likeness or [None] * len(row.drawings)  # none of the reference
    pictures = [
        {"prompt": prompt, "seed": seed, "seconds": drawing.seconds, **_likeness_dict(one)}
        for (prompt, seed), drawing, one in zip(comparison.cases, row.drawings, likeness, strict=False)
    ]
    summary = row.drawings[-1].summary if row.drawings else None
    return {
        "method": row.label,
        "package": summary.to_dict()["package"] if summary else None,
        "nfe": _nfe(comparison, row),
        "evaluated": summary.evaluated if summary else None,
        "speedup": _speedup(comparison, row),
        "seconds": row.seconds,
        "psnr": _finite(row.psnr),
        "ssim": row.ssim,
        "identical": row.psnr == math.inf,
        "error": row.error,
        "pictures": pictures,
    }


def _likeness_dict(one: Likeness | None) -> dict[str, float | None]:
    return {"psnr": _finite(one.psnr), "ssim": one.ssim} if one else {}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _nfe(comparison: Comparison, row: Row) -> float | None:
    """The mean over the pictures: methods that decide while they run evaluate more for some than for others."""
    counts = [one.summary.nfe for one in row.drawings if one.summary is not None]
    if not counts:
        return comparison.steps if row.drawings else None
    mean = statistics.fmean(counts)
    return int(mean) if mean.is_integer() else round(mean, 2)


def _speedup(comparison: Comparison, row: Row) -> float | None:
    """In evaluations, over the reference: fewer steps count too."""
    nfe = _nfe(comparison, row)
    return comparison.steps / nfe if comparison.steps and nfe else None
