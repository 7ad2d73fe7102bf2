"""The command ``evaluate``: from what was typed to the library's request, progress with the time left, a table."""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..cluster import Cluster
from ..core.words import counted_name
from . import pipelines
from .guard import MistakeError, errors_console, sampling_failures
from .printing import print_table
from .request import MethodSpec, SamplingRequest

if TYPE_CHECKING:
    from ..bench import evaluate as library
    from ..bench.evaluate import Results
    from ..bench.prompts import Prompt

T = TypeVar("T")

LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal to draw a bar in."""
MEMORY = 3600.0
"""Seconds that the time left is estimated from: one call may take minutes."""


def find_prompts(given: list[str], source: str | None, limit: int | None, model: str) -> list[Prompt]:
    """The prompts of the command line, then those of a list or file, at most ``limit`` in all.

    Args:
        model: which small model's own list ``tiny`` is.

    Raises:
        MistakeError: there is no prompt.
    """
    from ..bench.prompts import Prompt, load_prompts

    if limit is not None and limit < 1:
        raise MistakeError(f"--limit {limit} leaves no prompt: give a number ≥ 1")
    prompts = [Prompt(text) for text in given] + (load_prompts(source, model=model) if source else [])
    if not prompts:
        raise MistakeError("there is no prompt: give one or more, or --prompts with a list or file of them")
    return prompts[:limit]


def evaluate_with(engine: Callable[..., T], request: SamplingRequest, asked: library.Request, folder: Path) -> T:
    """Load the pipeline, then evaluate with progress on stderr.

    Args:
        engine: :func:`bench.evaluate.evaluate` or :func:`bench.comparison.compare`.
        asked: what :func:`library_request` made of the request.

    Raises:
        SpectrumError: the model can't be loaded, or the folder can't be written.
        FailureError: the untouched pipeline fails.
    """
    pipe = pipelines.load(request)
    with progress_meter() as meter, sampling_failures(pipe):
        return engine(pipe, asked, folder, meter)


def evaluate_on(cluster: Cluster, request: SamplingRequest, asked: library.Request, folder: Path) -> Results:
    """Evaluate on the actors of a cluster, which load the pipeline themselves."""
    from ..bench.evaluate import evaluate_on_ray

    with progress_meter() as meter:
        return evaluate_on_ray(functools.partial(pipelines.load, request), cluster, asked, folder, meter)


def library_request(
    request: SamplingRequest, specs: tuple[MethodSpec, ...], prompts: list[Prompt], **settings: Any
) -> library.Request:
    """What the library is asked for; ``settings`` are further fields of its request.

    Raises:
        SpectrumError: the request is wrong.
    """
    from ..bench import evaluate as library

    return library.Request(
        model=request.model,
        rows=tuple(spec.row() for spec in specs),
        prompts=tuple(prompts),
        seeds=request.seeds,
        call=request.call_options(),
        command=shlex.join(["spectrum", *sys.argv[1:]]),
        **settings,
    )


def table_of(results: Results) -> Table:
    """What fits a terminal: cost, and the mean of each metric with its verdict; the intervals are in the files."""
    from ..bench.evaluate.tables import brief_columns

    columns = brief_columns(results)
    table = Table(title=escape(results.model))
    table.add_column("method", overflow="fold", min_width=12)
    for column in columns:
        table.add_column(column.title.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in results.rows:
        name = f"{row['label']} (failed)" if row["error"] else row["label"]
        table.add_row(escape(name), *(escape(column.text(row)) for column in columns))
    return table


def to_dict(results: Results) -> dict[str, Any]:
    """The one object on stdout: rows, and where everything lies."""
    names = ("report.html", "results.json", "results.jsonl", "table.md", "table.tex", "manifest.json")
    return {
        "output": str(results.folder),
        "files": {name: str(results.folder / name) for name in names},
        "computed": results.computed,
        **results.to_dict(),
    }


class _Lines:
    """Progress where stderr is no terminal: a line now and then, with the time left."""

    def __init__(self) -> None:
        self._begin = self._said = time.monotonic()
        self._first = self._total = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if total != self._total:  # other work; what was done before says nothing of the time left
            self._begin, self._first, self._total = now, done, total
        if now - self._said < LINE_EVERY or done == self._first:
            return
        self._said = now
        left = (now - self._begin) / (done - self._first) * (total - done)
        errors_console().print(f"{done} of {total} calls done, {_span(left)} left", highlight=False)


class _Bar:
    """Progress in a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None
        self._total = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        if total != self._total:  # other work; what was done before says nothing of the time left
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._total = self._progress.add_task("", total=total, completed=done), total
        self._progress.update(self._task, completed=done)
        if what:
            self._progress.update(self._task, description=escape(what))


@contextmanager
def progress_meter() -> Iterator[_Lines | _Bar]:
    """Progress with the time left: a bar in a terminal, else a line now and then."""
    console = errors_console()
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=MEMORY) as progress:
        yield _Bar(progress)


def show(results: Results) -> None:
    """The table, and where the rest is."""
    from ..bench.evaluate.tables import BRIEF, known_metrics, legend

    console = Console()
    print_table(table_of(results))
    console.print(legend(results, intervals=False), highlight=False)
    if more := known_metrics(results)[BRIEF:]:
        titles = ", ".join(results.metrics[name]["title"] for name in more)
        console.print(f"In the report also {titles}.", highlight=False)
    computed = f"{counted_name(results.computed, 'call')} made; earlier results were kept."
    console.print(computed, "Intervals are in the report.", highlight=False)
    console.print(f"report: {results.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    from ..bench.evaluate.tables import hours

    return hours(seconds) if round(seconds / 60) else "less than a minute"
