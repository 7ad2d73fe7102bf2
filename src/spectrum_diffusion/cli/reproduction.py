"""The command ``reproduce``: which tables on which models, one after the other, into one page."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConflictError
from .evaluation import progress_meter
from .guard import MistakeError, errors_console, first_line
from .request import Request, check_model

if TYPE_CHECKING:
    from ..bench.evaluate.store import Store
    from ..bench.grid import Column
    from ..bench.prompts import Prompt
    from ..bench.reproduce import Reproduced

PAGE = "results.md"
CLOCK = "clock.json"

VIDEOS_SHARE = 4
"""A video costs as much as several pictures: a row gets so many times fewer of them."""
TUNED_ON = {False: 4, True: 2}
"""Pictures, and videos, by which a threshold is found."""
STANDS_IN = {"lpips": "flip"}
"""Where weights can't be had."""
FRAMES = 3
"""Frames of a video that a figure shows."""


def chosen(names: list[str]) -> list[str]:
    """Keys of the tables that were asked for.

    Raises:
        MistakeError: one that isn't there.
    """
    from ..bench.reproduce import TABLES

    wanted = list(TABLES) if "all" in names else names
    for name in wanted:
        if name not in TABLES:
            raise MistakeError(f"{name!r} is no table here: choose among {', '.join(TABLES)}, or all")
    return list(dict.fromkeys(wanted))


def parse_weights(pairs: Iterable[str]) -> dict[str, str]:
    """``["flux=DIR"]`` → what is loaded for a model, by its key.

    Raises:
        MistakeError: no such key, or nothing to load.
    """
    from ..bench.reproduce import MODELS

    found = {}
    for pair in pairs:
        key, _, source = pair.partition("=")
        if key not in MODELS or not source:
            raise MistakeError(f"--weights {pair!r}: write KEY=DIR, with {', '.join(MODELS)} for KEY")
        check_model(source, f"--weights {key}:")
        found[key] = source
    return found


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        names: keys of the tables.
        real: on the paper's models, in place of the small ones.
        limit: pictures a row.
        folder: where the page goes, and a folder for each model.
        metrics: names; None for those of the paper that can be had here.
        weights: by a model's key, what is loaded in place of the paper's id.
        prompts: a list or file for all tables; None for the tables' own.
        clip: model of the CLIP Score.
        loading: how a model is loaded: fields of the command line's request.
    """

    names: list[str]
    real: bool
    limit: int
    folder: Path
    metrics: tuple[str, ...] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    prompts: str | None = None
    clip: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Tell mistakes before any model is loaded."""
        from ..bench.evaluate.measures import CLIP_SCORE, check_metrics
        from ..bench.prompts import load_prompts
        from ..bench.sampling import pick_device

        if self.prompts:
            load_prompts(self.prompts)
        check_metrics(self.metrics or (), self.clip)
        if self.clip and self.metrics is None:
            check_metrics((CLIP_SCORE,), self.clip)  # then it must be had
        Request(prompts=("any",), **self.loading)
        pick_device(self.loading.get("device"), self.loading.get("offload", "none"))

    @property
    def command(self) -> str:
        """What is typed to get the same."""
        from ..bench.reproduce import TABLES

        names = ["all"] if self.names == list(TABLES) else self.names
        metrics = ["--metrics", ",".join(self.metrics)] if self.metrics else []
        model = ["--model", "real"] if self.real else []
        for key, source in self.weights.items():
            model += ["--weights", f"{key}={source}"]
        others = {"prompts": self.prompts, "clip": self.clip, **self.loading}
        given = [(f"--{name}", str(value)) for name, value in others.items() if value not in (None, "none")]
        words = [*names, *model, "--pairs", str(self.limit), *metrics, *(word for pair in given for word in pair)]
        return shlex.join(["spectrum", "reproduce", *words])

    def source(self, key: str) -> str:
        """What is loaded for a model."""
        from ..bench.reproduce import MODELS

        return self.weights.get(key, MODELS[key].real) if self.real else MODELS[key].tiny


class Clock:
    """Seconds of work in a folder, over all runs, kept at every tick so that a kill loses none."""

    def __init__(self, path: Path) -> None:
        from ..bench.evaluate.files import read_json

        self._path = path
        self.seconds = float((read_json(path) or {}).get("seconds", 0.0))
        self.rest()

    def rest(self) -> None:
        """What was since the last tick was no work."""
        self._since = time.monotonic()

    def tick(self) -> None:
        """Something was done since the last tick."""
        from ..bench.evaluate.files import write_json

        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        write_json(self._path, {"seconds": self.seconds})


def run(job: Job) -> list[Reproduced]:
    """Every table on every model of it that can be had; the others say why not. The page is written after each model.

    The work goes model by model, so that each is loaded once; what comes back is in the order of the tables.

    Raises:
        ConflictError: another run uses the folder.
        StoreError: the folder can't be written.
    """
    from ..bench.evaluate.lock import locked

    with locked(job.folder):
        return _run(job)


def _run(job: Job) -> list[Reproduced]:
    from ..bench.evaluate.files import write_text
    from ..bench.reproduce import MODELS, TABLES, page

    clock = Clock(job.folder / CLOCK)
    ordered: list[Reproduced] = []
    found: dict[tuple[str, str], Reproduced] = {}
    figures: dict[tuple[str, str], str] = {}
    for key, model in MODELS.items():
        tables = [name for name in job.names if key in TABLES[name].on(job.real)]
        if not tables:
            continue
        lists = {name: job.prompts or TABLES[name].prompts_for(model, job.real) for name in tables}
        clock.rest()
        made = _on_model(job, key, lists, clock)
        for one in made:
            found[one.name, one.key] = one
            figures[one.name, one.key] = _figure(one, job.folder)
        if any(one.results and one.results.computed for one in made):
            clock.tick()
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
    from ..loading import small_models

    return "" if name in small_models() else f"{name} is not in this checkout (training/ has its recipe)"


def _on_model(job: Job, key: str, lists: dict[str, str], clock: Clock) -> list[Reproduced]:
    """Tables on one model, by the lists of prompts that they take; what fails there doesn't concern the others."""
    from ..bench.evaluate.files import StoreError
    from ..bench.reproduce import Reproduced
    from ..bench.sampling import load
    from ..errors import SpectrumError

    source = job.source(key)
    found, problem = [], "" if job.real else _missing(source)
    try:
        pipe = None if problem else load(Request(prompts=(source,), model=source, **job.loading))
        for prompts in () if problem else dict.fromkeys(lists.values()):
            errors_console().print(f"{source}, prompts of {prompts}", highlight=False)
            sharing = [name for name, own in lists.items() if own == prompts]
            found += _with_prompts(job, key, pipe, source, sharing, prompts, clock)
    except (StoreError, ConflictError):  # the folder's, not the model's
        raise
    except (SpectrumError, MistakeError, RuntimeError, OSError, ValueError) as error:
        problem = first_line(error)
        errors_console().print(f"{source} failed: {problem}", highlight=False, markup=False)
    done = {one.name for one in found}
    return found + [Reproduced(name, key, source, None, problem) for name in lists if name not in done]


def _with_prompts(
    job: Job, key: str, pipe: Any, source: str, names: list[str], prompts: str, clock: Clock
) -> list[Reproduced]:
    """The tables that share a list of prompts, on a model of which ``source`` is the name."""
    from ..bench.evaluate.plan import slug
    from ..bench.prompts import load_prompts
    from ..bench.reproduce import MODELS, reproduce
    from ..bench.reproduce.paper import SEED

    model = MODELS[key]
    shown, tuned_on = _shared_out(load_prompts(prompts, model=source), job.limit, model.video)
    with progress_meter() as meter:

        def say(done: int, total: int, what: str) -> None:
            clock.tick()
            meter(done, total, what)

        return reproduce(
            names,
            key,
            pipe,
            source,
            shown,
            job.folder / (f"{key}-{slug(Path(prompts).stem)}" if job.real else key),
            metrics=_metrics(job, names),
            clip=job.clip,
            seed=SEED if job.real else 0,
            tuned_on=tuned_on,
            call=dict(model.call) if job.real else {},
            on_unit=say,
            on_tuning=lambda what: say(0, 1, f"finding a threshold: {what}"),
        )


def _shared_out(every: list[Prompt], limit: int, video: bool) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The prompts of a row, and of the others, if there are any, those by which thresholds are found."""
    from ..bench.prompts import spread

    shown = spread(every, max(1, limit // VIDEOS_SHARE) if video else limit)
    others = [prompt for prompt in every if prompt not in shown] or shown
    return tuple(shown), tuple(prompt.text for prompt in spread(others, TUNED_ON[video]))


def _metrics(job: Job, names: list[str]) -> tuple[str, ...]:
    """The tables' own as far as they can be had; FLIP stands in for LPIPS where that can't."""
    from ..bench.evaluate.measures import judges
    from ..bench.reproduce import TABLES

    if job.metrics is not None:
        return job.metrics
    had = {name for name, judge in judges(job.clip).items() if not judge.available()}
    wanted = dict.fromkeys(metric for name in names for metric in ("psnr", "ssim", "lpips", *TABLES[name].metrics))
    found = [name if name in had else STANDS_IN.get(name) for name in wanted]
    return tuple(name for name in found if name in had)


def _figure(found: Reproduced, folder: Path) -> str:
    """Draw a figure of pictures; its path within the folder."""
    from ..bench.evaluate import REFERENCE
    from ..bench.evaluate.files import written
    from ..bench.evaluate.store import Store
    from ..bench.grid import make_grid
    from ..bench.prompts import spread

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
    from ..bench.evaluate.examples import beside, evenly
    from ..bench.grid import Column

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
