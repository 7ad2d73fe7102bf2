"""Runs tables model by model, so that each model is loaded once, and writes the page after each of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...atomic import StoreError
from ...core.words import reason_of
from ...errors import ConflictError, InvalidOptionError, SpectrumError
from ..evaluate import Request, evaluate, files
from ..evaluate.lock import locked
from ..evaluate.measures import CLIP_SCORE, check_metrics, judges
from ..evaluate.units import slug
from ..evaluate.work import OnUnit
from ..prompts import Prompt, load_prompts, spread
from .figures import draw_figure
from .page import results_page
from .paper import MODELS, SEED, TABLES
from .result import TableResult
from .rows import make_rows

PAGE = "results.md"
TIMER = "clock.json"

BASELINES = ("14 steps", "15 steps")
"""The report compares all rows with the first of these that exists: they cost about as much as most rows."""
VIDEOS_SHARE = 4
"""A video costs as much as several images, so rows of videos have a quarter as many."""
TUNED_ON = {False: 4, True: 2}
"""Number of images, and of videos, on which a threshold is calibrated."""
STAND_INS = {"lpips": "flip"}
"""Metrics that replace others whose weights are missing."""


def _ignore(*_: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which tables run on which models.

    Attributes:
        tables: keys of ``TABLES``.
        folder: receives the page, the figures, and a folder for each model.
        load: loads the pipeline of a model, given its name, folder or id.
        images: number of images in a row.
        real: run on the paper's models, not on the small ones.
        only: keys of the models to run on; by default all that the tables name.
        weights: model key → what is loaded instead of the paper's id.
        prompts: a list or file for all tables; None for each table's own.
        metrics: names; None for the paper's metrics that are available.
        clip: model of the CLIP Score.
        command: the command line that runs the same job, for the page.

    Raises:
        InvalidOptionError: the prompts or the metrics are unknown or unavailable, or no table runs on the models.
    """

    tables: list[str]
    folder: Path
    load: Callable[[str], Any]
    images: int
    real: bool = False
    only: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    prompts: str | None = None
    metrics: tuple[str, ...] | None = None
    clip: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.prompts:
            load_prompts(self.prompts)
        explicit_clip = (CLIP_SCORE,) if self.clip and self.metrics is None else ()
        check_metrics((*(self.metrics or ()), *explicit_clip), self.clip)
        if not self.places:
            named = {key for name in self.tables for key in TABLES[name].on(self.real)}
            raise InvalidOptionError(
                f"{', '.join(self.tables)} do not run on {', '.join(self.only)}: choose among "
                f"{', '.join(key for key in MODELS if key in named)}"
            )

    @property
    def places(self) -> list[tuple[str, str]]:
        """Each table with each model that it runs on."""
        places = [(name, key) for name in self.tables for key in TABLES[name].on(self.real)]
        return [(name, key) for name, key in places if not self.only or key in self.only]

    def source(self, key: str) -> str:
        """What to load for a model."""
        return self.weights.get(key, MODELS[key].real) if self.real else MODELS[key].tiny


class WorkTimer:
    """Seconds of work in a folder over all runs. Every tick saves them, so that a killed run loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds = float((files.read_json(path) or {}).get("seconds", 0.0))
        self.skip()

    def skip(self) -> None:
        """Leave out the time since the last tick."""
        self._since = time.monotonic()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        files.write_json(self._path, {"seconds": self.seconds})


def run_tables(job: Job, on_unit: OnUnit = _ignore, say: Callable[[str], None] = _ignore) -> list[TableResult]:
    """Run every table on every model. A model that fails is reported in its results, and the others continue.

    Args:
        job: what to run.
        on_unit: called as by :func:`evaluate`.
        say: called with a line about what starts or fails.

    Returns:
        The results in the order of the tables.

    Raises:
        ConflictError: another run uses the folder.
        StoreError: the folder can't be written.
    """
    with locked(job.folder):
        return _Run(job, on_unit, say).all()


class _Run:
    def __init__(self, job: Job, on_unit: OnUnit, say: Callable[[str], None]) -> None:
        self.job, self._on_unit, self._say = job, on_unit, say
        self._timer = WorkTimer(job.folder / TIMER)

    def all(self) -> list[TableResult]:
        places = self.job.places
        results: dict[tuple[str, str], TableResult] = {}
        figures: dict[tuple[str, str], str] = {}
        for key in MODELS:
            self._timer.skip()
            of_model = self._on_model(key, [name for name, model in places if model == key])
            if not of_model:
                continue
            for result in of_model:
                results[result.name, key] = result
                figures[result.name, key] = draw_figure(result, self.job.folder)
            if any(result.results and result.results.computed for result in of_model):
                self._timer.tick()
            ordered = [results[place] for place in places if place in results]
            text = results_page(ordered, figures, self.job.command, self._timer.seconds)
            files.write_text(self.job.folder / PAGE, text)
            gc.collect()  # otherwise the next model would be loaded beside this one
        return [results[place] for place in places]

    def _on_model(self, key: str, names: list[str]) -> list[TableResult]:
        if not names:
            return []
        source = self.job.source(key)
        results: list[TableResult] = []
        problem = ""
        try:
            pipe = self.job.load(source)
            for prompts, sharing in self._by_prompts(key, names).items():
                self._say(f"{source}, prompts of {prompts}")
                results += self._with_prompts(key, pipe, sharing, prompts)
        except (StoreError, ConflictError):  # of the folder, not of the model
            raise
        except (SpectrumError, RuntimeError, OSError, ValueError) as error:
            problem = reason_of(error)
        done = {result.name for result in results}
        if problem:
            missing = ", ".join(name for name in names if name not in done)
            self._say(f"{missing} did not run on {source}: {problem}")
        return results + [TableResult(name, key, source, None, problem) for name in names if name not in done]

    def _by_prompts(self, key: str, names: list[str]) -> dict[str, list[str]]:
        """Tables by the list of prompts that they share."""
        shared: dict[str, list[str]] = {}
        for name in names:
            own = TABLES[name].prompts_for(MODELS[key], self.job.real)
            shared.setdefault(self.job.prompts or own, []).append(name)
        return shared

    def _with_prompts(self, key: str, pipe: Any, names: list[str], source: str) -> list[TableResult]:
        """Run the tables that share a list of prompts in one evaluation, which generates common rows once."""
        job, model = self.job, MODELS[key]
        folder = job.folder / (f"{key}-{slug(Path(source).stem)}" if job.real else key)
        prompts, tuned_on = _split(load_prompts(source, model=job.source(key)), job.images, model.video)
        call = dict(model.call) if job.real else {}
        settings = {setting.label: setting for name in names for setting in TABLES[name].settings}
        rows, problems = make_rows(pipe, tuple(settings.values()), tuned_on, call, folder / "plans", self._on_tuning)
        labels = {row.label for row in rows}
        request = Request(
            model=job.source(key),
            rows=rows,
            prompts=prompts,
            seeds=(SEED if job.real else 0,),
            call=call,
            metrics=self._metrics(names),
            clip=job.clip,
            baseline=next((label for label in BASELINES if label in labels), None),
            path=True,
            command=f"reproduce {' '.join(names)}",
        )
        results = evaluate(pipe, request, folder, self._on_progress)
        return [TableResult(name, key, job.source(key), results, problems=problems) for name in names]

    def _metrics(self, names: list[str]) -> tuple[str, ...]:
        """The metrics of the tables that are available, or their stand-ins."""
        if self.job.metrics is not None:
            return self.job.metrics
        available = {name for name, judge in judges(self.job.clip).items() if not judge.available()}
        wanted = dict.fromkeys(metric for name in names for metric in ("psnr", "ssim", "lpips", *TABLES[name].metrics))
        chosen = [name if name in available else STAND_INS.get(name) for name in wanted]
        return tuple(name for name in chosen if name in available)

    def _on_progress(self, done: int, total: int, what: str) -> None:
        self._timer.tick()
        self._on_unit(done, total, what)

    def _on_tuning(self, what: str) -> None:
        self._on_progress(0, 1, f"calibrating a threshold: {what}")


def _split(every: list[Prompt], images: int, video: bool) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The prompts of a row, and the texts of others, if there are any, on which thresholds are calibrated."""
    shown = spread(every, max(1, images // VIDEOS_SHARE) if video else images)
    others = [prompt for prompt in every if prompt not in shown] or shown
    return tuple(shown), tuple(prompt.text for prompt in spread(others, TUNED_ON[video]))
