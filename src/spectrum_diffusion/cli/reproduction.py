"""The command ``reproduce``: which tables on which models, one after the other, into one page."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError
from .evaluation import progress_meter
from .guard import MistakeError, errors_console, first_line
from .request import Request

if TYPE_CHECKING:
    from ..evaluate.store import Store
    from ..reproduce import Reproduced
    from .grid import Column

PAGE = "results.md"
CLOCK = "clock.json"

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


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        names: keys of the tables.
        real: on the paper's models, in place of the small ones.
        limit: pictures a row.
        folder: where the page goes, and a folder for each model.
        metrics: names; None for the paper's.
    """

    names: list[str]
    real: bool
    limit: int
    folder: Path
    metrics: tuple[str, ...] | None

    @property
    def command(self) -> str:
        """What is typed to get the same."""
        from ..reproduce import TABLES

        names = ["all"] if self.names == list(TABLES) else self.names
        metrics = ["--metrics", ",".join(self.metrics)] if self.metrics else []
        model = ["--model", "real"] if self.real else []
        return shlex.join(["spectrum", "reproduce", *names, *model, "--pairs", str(self.limit), *metrics])


class Clock:
    """Seconds that a folder took, over all runs; neither models for which nothing was to be done count, nor
    what was cut off within a model."""

    def __init__(self, path: Path) -> None:
        from ..evaluate.files import read_json

        self._path, self._since = path, time.monotonic()
        self.seconds = float((read_json(path) or {}).get("seconds", 0.0))

    def note(self, *, computed: bool) -> None:
        """A model is done."""
        from ..evaluate.files import write_json

        now = time.monotonic()
        self.seconds += now - self._since if computed else 0.0
        self._since = now
        write_json(self._path, {"seconds": self.seconds})


def run(job: Job) -> list[Reproduced]:
    """Every table on every model of it that can be had; the others say why not. The page is written after each model.

    The work goes model by model, so that each is loaded once; what comes back is in the order of the tables.

    Raises:
        ConflictError: another run uses the folder.
        StoreError: the folder can't be written.
    """
    from ..evaluate.lock import locked

    with locked(job.folder):
        return _run(job)


def _run(job: Job) -> list[Reproduced]:
    from ..evaluate.files import write_text
    from ..reproduce import MODELS, TABLES, page

    clock = Clock(job.folder / CLOCK)
    ordered: list[Reproduced] = []
    found: dict[tuple[str, str], Reproduced] = {}
    figures: dict[tuple[str, str], str] = {}
    for key, model in MODELS.items():
        tables = [name for name in job.names if key in TABLES[name].on(job.real)]
        if not tables:
            continue
        for one in _on_model(job, key, {name: TABLES[name].prompts_for(model, job.real) for name in tables}):
            found[one.name, one.key] = one
            figures[one.name, one.key] = _figure(one, job.folder)
        clock.note(computed=any(one.results and one.results.computed for one in found.values() if one.key == key))
        places = [(name, key) for name in job.names for key in TABLES[name].on(job.real)]
        ordered = [found[place] for place in places if place in found]
        write_text(job.folder / PAGE, page(ordered, figures, job.command, clock.seconds))
        gc.collect()  # before the next model is loaded beside this one
    return ordered


def failures(job: Job, found: Sequence[Reproduced]) -> dict[str, str]:
    """What went wrong; a small model that is not in this checkout has not."""
    return {
        f"{one.name} on {one.ran}": one.problem for one in found if one.problem and (job.real or not _missing(one.ran))
    }


def _missing(name: str) -> str:
    from ..default_model import small_models

    return "" if name in small_models() else f"{name} is not in this checkout (training/ has its recipe)"


def _on_model(job: Job, key: str, lists: dict[str, str]) -> list[Reproduced]:
    """Tables on one model, by the lists of prompts that they take; what fails there doesn't concern the others."""
    from ..errors import SpectrumError
    from ..evaluate.files import StoreError
    from ..reproduce import MODELS, Reproduced
    from .drawing import load

    source = MODELS[key].real if job.real else MODELS[key].tiny
    found, problem = [], "" if job.real else _missing(source)
    try:
        pipe = None if problem else load(Request(prompts=(source,), model=source))
        for prompts in () if problem else dict.fromkeys(lists.values()):
            errors_console().print(f"{source}, prompts of {prompts}", highlight=False)
            sharing = [name for name, own in lists.items() if own == prompts]
            found += _with_prompts(job, key, pipe, source, sharing, prompts)
    except (StoreError, ConflictError):  # the folder's, not the model's
        raise
    except (SpectrumError, MistakeError, RuntimeError, OSError, ValueError) as error:
        problem = first_line(error)
        errors_console().print(f"{source} failed: {problem}", highlight=False, markup=False)
    done = {one.name for one in found}
    return found + [Reproduced(name, key, source, None, problem) for name in lists if name not in done]


def _with_prompts(job: Job, key: str, pipe: Any, source: str, names: list[str], prompts: str) -> list[Reproduced]:
    """The tables that share a list of prompts, on a model of which ``source`` is the name."""
    from ..prompts import load_prompts, spread
    from ..reproduce import MODELS, reproduce

    model, every = MODELS[key], load_prompts(prompts, model=source)
    shown = spread(every, max(1, job.limit // VIDEOS_SHARE) if model.video else job.limit)
    others = [prompt for prompt in every if prompt not in shown] or shown
    with progress_meter() as meter:
        return reproduce(
            names,
            key,
            pipe,
            source,
            tuple(shown),
            job.folder / (f"{key}-{prompts}" if job.real else key),
            metrics=_metrics(job.metrics),
            tuned_on=tuple(prompt.text for prompt in spread(others, TUNED_ON[model.video])),
            call=dict(model.call) if job.real else {},
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


def _figure(found: Reproduced, folder: Path) -> str:
    """Draw a figure of pictures; its path within the folder."""
    from ..evaluate import REFERENCE
    from ..evaluate.files import written
    from ..evaluate.store import Store
    from ..prompts import spread
    from .grid import make_grid

    if found.results is None or not found.table.pictures:
        return ""
    results, store = found.results, Store(found.results.folder)
    prompts = spread(list(dict.fromkeys(unit["prompt"] for unit in results.units)), found.table.pictures)
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
    from ..evaluate.examples import beside, evenly
    from .grid import Column

    units = {unit["prompt"]: unit for unit in found.units(label)}
    cells = [
        beside(evenly(store.read_frames(units[prompt]["file"]), FRAMES)) if prompt in units else found.problem_of(label)
        for prompt in prompts
    ]
    nfe = found.rows[label]["nfe"] if label in found.rows else None
    return Column(title, f"{nfe['mean']:.3g} evaluations" if nfe else "", cells)


def _printable(label: str) -> str:
    """The font that comes with Pillow has no Greek letters."""
    return label.replace("α", "slope")
