"""From what was typed for ``spectrum reproduce`` to a job of the bench."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pipelines
from .evaluation import progress_meter
from .guard import MistakeError, errors_console
from .request import SamplingRequest, check_choice, check_model

if TYPE_CHECKING:
    from ..bench.reproduce import Job, TableResult


def parse_tables(names: list[str]) -> list[str]:
    """Keys of the tables.

    Raises:
        MistakeError: a table does not exist.
    """
    from ..bench.reproduce import TABLES

    wanted = list(TABLES) if "all" in names else names
    for name in wanted:
        check_choice("table", name, (*TABLES, "all"))
    return list(dict.fromkeys(wanted))


def parse_weights(pairs: Iterable[str]) -> dict[str, str]:
    """``["flux=DIR"]`` → model key → what to load.

    Raises:
        MistakeError: a key is unknown, or its model does not exist.
    """
    from ..bench.reproduce import MODELS

    weights = {}
    published = [name for name, model in MODELS.items() if model.real]
    for pair in pairs:
        key, _, source = pair.partition("=")
        if key not in published or not source:
            raise MistakeError(f"--weights {pair!r}: write KEY=DIR, with {', '.join(published)} for KEY")
        check_model(source, f"--weights {key}:")
        weights[key] = source
    return weights


def parse_models(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys of models.

    Raises:
        MistakeError: a key is unknown.
    """
    from ..bench.reproduce import MODELS

    keys = tuple(dict.fromkeys(keys))
    for key in keys:
        check_choice("--only", key, MODELS)
    return keys


def make_job(tables: list[str], folder: Path, loading: Mapping[str, Any], **fields: Any) -> Job:
    """The job; mistakes are reported before any model is loaded.

    Args:
        loading: how to load a model: fields of the command line's request.
        fields: of the job.
    """
    from ..bench.reproduce import Job

    SamplingRequest(prompts=("any",), **loading)
    pipelines.pick_device(loading.get("device"), loading.get("offload", "none"))
    return Job(
        tables=tables,
        folder=folder,
        load=lambda source: pipelines.load(SamplingRequest(prompts=(source,), model=source, **loading)),
        command=_command(tables, {**fields, **loading}),
        **fields,
    )


def run_job(job: Job) -> list[TableResult]:
    """Run the job with progress on stderr."""
    from ..bench.reproduce import run_tables

    with progress_meter() as meter:
        return run_tables(
            job, meter, lambda text: errors_console().print(text, highlight=False, markup=False, soft_wrap=True)
        )


def _command(tables: list[str], options: Mapping[str, Any]) -> str:
    """The command line of the same job in any folder."""
    from ..bench.reproduce import TABLES

    words = ["all"] if tables == list(TABLES) else list(tables)
    words += ["--model", "real"] if options["real"] else []
    words += ["--only", ",".join(options["only"])] if options["only"] else []
    for key, source in options["weights"].items():
        words += ["--weights", f"{key}={source}"]
    words += ["--pairs", str(options["images"])]
    words += ["--metrics", ",".join(options["metrics"])] if options["metrics"] else []
    for name in ("prompts", "clip", "device", "dtype", "offload"):
        if options[name] not in (None, "none"):
            words += [f"--{name}", str(options[name])]
    return shlex.join(["spectrum", "reproduce", *words])
