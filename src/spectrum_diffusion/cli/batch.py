"""Many outputs into one folder: ``spectrum generate --prompts FILE -o DIR``, on this machine or on a Ray cluster."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..cluster import Cluster, joined
from ..core.words import counted_name
from ..plan import versions
from . import outputs, pipelines
from .evaluation import progress_meter
from .guard import FailureError, MistakeError, interruptible
from .lora import parse_lora
from .printing import echo_json
from .request import DEFAULT_MODEL, MethodSpec, SamplingRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..bench.batch import Item, Job, Outcome, Plan, Report
    from ..bench.evaluate.sampling import Sample

KEPT = "Finished files are kept; the same command goes on from there."


@dataclass(frozen=True)
class Batch:
    """How a batch runs.

    Attributes:
        format: suffix of the files, without the dot; None is png, or mp4 for videos.
        cluster: where it runs; None is this process alone.
        price: of an hour of one worker.
    """

    format: str | None = None
    cluster: Cluster | None = None
    price: float | None = None


def is_batch(output: Path, source: str | None) -> bool:
    """Whether many prompts go into a folder."""
    return source is not None and (output.is_dir() or not output.suffix)


def run(request: SamplingRequest, spec: MethodSpec, folder: Path, batch: Batch, fps: int, as_json: bool) -> None:
    """Generate what is missing, report, and fail if something still is.

    Raises:
        FailureError: files are missing at the end.
    """
    from ..bench.batch import Plan, Report

    rank, world = _share(batch)
    if world > 1 and request.device is None:
        request = replace(request, device=_own_device())
    outputs.check_folder(folder)
    job = _job(request, spec, folder, batch, fps)
    plan = Plan.of(job, request.prompts, request.seeds, rank, world)
    if rank == 0:
        whole = plan if world == 1 else Plan.of(job, request.prompts, request.seeds)
        whole.write_manifest()
        if others := whole.others:
            typer.echo(f"{folder} also has {counted_name(others, 'file')} of other prompts or settings", err=True)
    missing = plan.missing
    report = Report(len(plan.items), len(plan.items) - len(missing), batch.price)
    if missing:
        with interruptible(KEPT), progress_meter() as meter:
            for done, outcome in enumerate(_outcomes(plan, batch, report)):
                report.add(outcome)
                meter(done + 1, len(missing), outcome.file)
    _show(report, folder, as_json, f"process {rank} of {world}: " if world > 1 else "")


def _outcomes(plan: Plan, batch: Batch, report: Report) -> Iterator[Outcome]:
    from ..bench.batch.engines import here, on_ray

    if batch.cluster is None:
        yield from here(plan)
        return
    with joined(batch.cluster) as pool:
        report.workers = pool.size
        yield from on_ray(plan, pool)


def _share(batch: Batch) -> tuple[int, int]:
    """Rank and number of the processes that torchrun or ``accelerate launch`` started.

    Raises:
        MistakeError: they contradict each other, or are for Ray too.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)}
    if not given:
        return 0, 1
    shown = " and ".join(f"{name}={value}" for name, value in given.items())
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    except (KeyError, ValueError):
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise MistakeError(
            f"the environment has {shown}, which is no share of a job: set RANK to the number of this process, from 0, "
            "and WORLD_SIZE to that of all processes, or unset both"
        )
    if world > 1 and batch.cluster is not None:
        raise MistakeError(
            f"--ray {batch.cluster.address} starts processes of its own, but this is process {rank} of {world} of a "
            "launcher: run the command without the launcher, or without --ray"
        )
    return rank, world


def _own_device() -> str | None:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None


def _job(request: SamplingRequest, spec: MethodSpec, folder: Path, batch: Batch, fps: int) -> Job:
    from ..bench.batch import Job
    from ..bench.evaluate.request import Row

    suffix = f".{batch.format or ('mp4' if request.frames else 'png')}"
    outputs.check_suffix(Path(f"x{suffix}"))
    return Job(
        load=functools.partial(_load, request, suffix),
        save=functools.partial(_save, fps=fps),
        provenance=functools.partial(provenance, request, spec),
        row=Row(spec.name, spec.options, spec.label, spec.plan),
        call=request.call_options(),
        settings=_settings(request, spec, fps if suffix in outputs.VIDEOS else None),
        folder=folder.absolute(),
        suffix=suffix,
    )


def _load(request: SamplingRequest, suffix: str) -> Any:
    pipe = pipelines.load(request)
    outputs.check_kind(Path(f"x{suffix}"), pipelines.makes_videos(pipe))
    return pipe


def _save(path: Path, frames: Any, facts: dict[str, Any], *, fps: int) -> None:
    outputs.save(path, frames, facts, fps)


def _settings(request: SamplingRequest, spec: MethodSpec, fps: int | None) -> dict[str, Any]:
    """What determines a file beside its prompt and seed. Versions of packages do not: a job may outlast an update."""
    from ..bench.batch.plan import contents_digest
    from ..loading import ASSETS, named_models

    shipped = ASSETS / DEFAULT_MODEL if request.model == DEFAULT_MODEL else None
    source = shipped or (Path(request.model) if Path(request.model).is_dir() else named_models().get(request.model))
    return {
        "model": contents_digest(source) if source is not None else request.model,
        "dtype": request.dtype,
        "lora": [_lora_settings(*parse_lora(text)) for text in request.lora],
        "method": spec.name,
        "options": spec.all_options(),
        "call": request.call_options(),
        "fps": fps,
    }


def _lora_settings(source: str, scale: float) -> dict[str, Any]:
    from ..bench.batch.plan import contents_digest

    return {"weights": contents_digest(Path(source)) if Path(source).exists() else source, "scale": scale}


def provenance(request: SamplingRequest, spec: MethodSpec, item: Item, result: Sample) -> dict[str, Any]:
    """What it takes to generate the same image again. It holds no time: the same call gives the same bytes."""
    summary = result.summary
    assert summary is not None
    return {
        "prompt": item.prompt,
        "seed": item.seed,
        "model": request.model,
        "method": spec.name,
        "options": spec.all_options(),
        "package": summary.to_dict()["package"],
        "call": request.call_options(),
        "lora": list(request.lora),
        "steps": summary.steps,
        "evaluated": summary.evaluated,
        "versions": versions(),
    }


def _show(report: Report, folder: Path, as_json: bool, who: str) -> None:
    if as_json:
        echo_json({"output": str(folder), **report.to_dict()})
    else:
        for line in report.lines():
            typer.echo(f"{who}{line}")
    if report.missing:
        raise FailureError(f"{report.missing} of {report.wanted} files are missing: run the same command again. {KEPT}")
