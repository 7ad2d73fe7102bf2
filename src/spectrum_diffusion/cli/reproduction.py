"""The command ``reproduce``: which tables on which models, one after the other, into one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .evaluation import progress_meter
from .guard import MistakeError, errors_console
from .request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..evaluate.store import Store
    from ..reproduce import Reproduced
    from .grid import Column

T = TypeVar("T")

VIDEOS_SHARE = 4
"""A video costs as much as several pictures: a row gets so many times fewer of them."""
TUNED_ON = {False: 4, True: 2}
"""Pictures, and videos, by which a threshold is found."""
FRAMES = 3
"""Frames of a video that a figure shows."""


def chosen(names: list[str]) -> list[str]:
    """Keys of the tables that were asked for.

    Raises:
        MistakeError: one that isn't there.
    """
    from ..reproduce import TABLES

    wanted = list(TABLES) if "all" in names else names
    for name in wanted:
        if name not in TABLES:
            raise MistakeError(f"{name!r} is no table here: choose among {', '.join(TABLES)}, or all")
    return list(dict.fromkeys(wanted))


def run(names: list[str], real: bool, limit: int, folder: Path, metrics: tuple[str, ...] | None) -> list[Reproduced]:
    """Every table on every model of it that can be had; the others say why not.

    The work goes model by model, so that each is loaded once; what comes back is in the order of the tables.
    """
    from ..reproduce import MODELS, TABLES, Reproduced
    from .drawing import load

    found: dict[tuple[str, str], Reproduced] = {}
    for key, model in MODELS.items():
        tables = [name for name in names if key in TABLES[name].on(real)]
        source = model.real if real else model.tiny
        problem = "" if real else _missing(source)
        if problem or not tables:
            found |= {(name, key): Reproduced(name, key, source, None, problem) for name in tables}
            continue
        errors_console().print(f"{source}: {', '.join(tables)}", highlight=False)
        pipe = load(Request(prompts=(source,), model=source))
        lists = [TABLES[name].prompts if real else "tiny" for name in tables]
        for prompts in dict.fromkeys(lists):
            sharing = [name for name, own in zip(tables, lists, strict=True) if own == prompts]
            for one in _on_model(sharing, key, pipe, source, prompts, real, limit, folder / key, metrics):
                found[one.name, key] = one
    return [found[name, key] for name in names for key in TABLES[name].on(real)]


def write(found: Sequence[Reproduced], folder: Path, seconds: float) -> Path:
    """The figures, and the page of all of it; where the page lies.

    Args:
        seconds: that this run took.
    """
    from ..evaluate.files import write_text
    from ..reproduce import page

    figures = {(one.name, one.key): file for one in found if (file := _figure(one, folder))}
    path = folder / "results.md"
    names = list(dict.fromkeys(one.name for one in found))
    write_text(path, page(found, figures, _seconds(folder, names, seconds)))
    return path


def _missing(name: str) -> str:
    from ..default_model import small_models

    return "" if name in small_models() else f"{name} is not in this checkout (training/ has its recipe)"


def _on_model(
    names: list[str],
    key: str,
    pipe: Any,
    source: str,
    prompts: str,
    real: bool,
    limit: int,
    folder: Path,
    metrics: tuple[str, ...] | None,
) -> list[Reproduced]:
    """The tables that share a list of prompts, on a model of which ``source`` is the name."""
    from ..prompts import load_prompts
    from ..reproduce import MODELS, reproduce

    model, every = MODELS[key], load_prompts(prompts, model=source)
    shown = _spread(every, max(1, limit // VIDEOS_SHARE) if model.video else limit)
    others = [prompt for prompt in every if prompt not in shown] or shown
    with progress_meter() as meter:
        return reproduce(
            names,
            key,
            pipe,
            source,
            tuple(shown),
            folder,
            metrics=_metrics(metrics),
            tuned_on=tuple(prompt.text for prompt in _spread(others, TUNED_ON[model.video])),
            call=dict(model.call) if real else {},
            on_unit=meter,
            on_tuning=lambda what: meter(0, 1, f"finding a threshold: {what}"),
        )


def _metrics(asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The paper's; FLIP stands in where LPIPS can't be had."""
    from ..metrics import METRICS

    if asked is not None:
        return asked
    perceptual = next((name for name in ("lpips", "flip") if not METRICS[name].available()), None)
    return ("psnr", "ssim", perceptual) if perceptual else ("psnr", "ssim")


def _spread(items: list[T], limit: int) -> list[T]:
    """Spread over the list, since lists are ordered by kind."""
    return [items[i * len(items) // limit] for i in range(limit)] if len(items) > limit else items


def _figure(found: Reproduced, folder: Path) -> str:
    """Draw a figure of pictures; its path within the folder."""
    from ..evaluate import REFERENCE
    from ..evaluate.files import written
    from ..evaluate.store import Store
    from .grid import make_grid

    if found.results is None or not found.table.pictures:
        return ""
    results, store = found.results, Store(found.results.folder)
    prompts = _spread(list(dict.fromkeys(unit["prompt"] for unit in results.units)), found.table.pictures)
    columns = [
        _column(title, label, found, store, prompts)
        for title, label in [("50 steps", REFERENCE), *((_printable(s.label), s.label) for s in found.table.settings)]
    ]
    name = f"{found.name}-{found.key}.png"
    with written(folder / name) as temporary:
        make_grid(prompts, columns).save(temporary, format="png", optimize=True)
    return name


def _column(title: str, label: str, found: Reproduced, store: Store, prompts: list[str]) -> Column:
    """What a row drew for the prompts, or why it did not."""
    from .grid import Column

    row = found.rows.get(label, {"error": found.problems.get(label, "–"), "nfe": None})
    units = {unit["prompt"]: unit for unit in (found.results.units if found.results else []) if unit["row"] == label}
    cells = [
        _strip(store.read_frames(units[prompt]["file"])) if prompt in units else row["error"] or "–"
        for prompt in prompts
    ]
    return Column(title, f"{row['nfe']['mean']:.3g} evaluations" if row["nfe"] else "", cells)


def _printable(label: str) -> str:
    """The font that comes with Pillow has no Greek letters."""
    return label.replace("α", "slope")


def _strip(frames: list[Image]) -> Image:
    """A picture as it is; of a video some frames, side by side."""
    from PIL import Image

    shown = frames if len(frames) == 1 else [frames[round(i * (len(frames) - 1) / (FRAMES - 1))] for i in range(FRAMES)]
    width, height = shown[0].size
    whole = Image.new("RGB", (width * len(shown), height))
    for place, frame in enumerate(shown):
        whole.paste(frame, (place * width, 0))
    return whole


def _seconds(folder: Path, names: list[str], seconds: float) -> float:
    """What this run and those before it in the folder took; runs that were cut off have left no time."""
    from ..evaluate.files import read_json, write_json

    path = folder / "runs.json"
    runs = [*(read_json(path) or {}).get("runs", []), {"tables": names, "seconds": round(seconds, 1)}]
    write_json(path, {"runs": runs})
    return float(sum(run["seconds"] for run in runs))
