"""The command ``spectrum serve``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...cluster import Cluster, joined
from ...core.words import counted_name
from ...serve import check_packages
from ...serve.limits import Limits
from .. import pipelines
from ..app import app
from ..options import (
    ActorCpus,
    ActorGpus,
    Actors,
    Device,
    Dtype,
    Loras,
    Method,
    Model,
    Offload,
    Options,
    PlanFile,
    Ray,
    Site,
    Speedup,
    cluster_of,
    shared_options,
)
from ..request import DEFAULT_MODEL, MethodSpec, SamplingRequest, join_options, parse_options

if TYPE_CHECKING:
    from ...serve.engine import Engine

USUAL = Limits()
LONGEST_GRACE = 24 * 3600.0


@app.command()
def serve(
    model: Model = DEFAULT_MODEL,
    method: Method = None,
    plan: PlanFile = None,
    speedup: Speedup = None,
    site: Site = None,
    option: Options = None,
    host: Annotated[
        str, typer.Option(help="Address to serve. Others than this machine's own need SPECTRUM_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model for clients. (default: --model)")] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.")] = USUAL.images,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps of a request.")] = USUAL.steps,
    max_side: Annotated[int, typer.Option(min=1, help="Pixels of each side of an image.")] = USUAL.side,
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt.")] = USUAL.prompt,
    max_speedup: Annotated[float, typer.Option(min=1, help="Speedup that a request may ask for.")] = USUAL.speedup,
    max_queue: Annotated[int, typer.Option(min=1, help="Images that wait; more get the answer 429.")] = USUAL.queue,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Images in one call of the pipeline; 1 for results that are equal bit for bit.")
    ] = USUAL.batch,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = USUAL.body,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds from a request to its answer.")] = USUAL.seconds,
    grace: Annotated[
        float, typer.Option(min=0, max=LONGEST_GRACE, help="Seconds to finish what is queued, on SIGTERM or Ctrl-C.")
    ] = 60.0,
    ray: Ray = None,
    actors: Actors = None,
    actor_gpus: ActorGpus = None,
    actor_cpus: ActorCpus = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    lora: Loras = None,
) -> None:
    """Serve a model to clients of OpenAI's images API, until SIGTERM or Ctrl-C."""
    check_packages()
    from ...serve.address import listen, web_address
    from ...serve.server import api_key, bind, serve

    limits = Limits(
        images=max_images,
        steps=max_steps,
        side=max_side,
        prompt=max_prompt,
        speedup=max_speedup,
        queue=max_queue,
        batch=max_batch,
        body=max_body,
        seconds=timeout,
    )
    request = SamplingRequest(
        prompts=(model,), model=model, device=device, dtype=dtype, offload=offload, lora=tuple(lora or ())
    )
    options = join_options(shared_options(speedup, site), parse_options(option or ()))
    spec = MethodSpec.planned(str(plan), options, method) if plan else MethodSpec(method or "spectrum", options)
    spec.check(None)
    key = api_key()
    load = functools.partial(_engine, request, spec, _plan(plan))
    cluster = cluster_of(ray, actors, actor_gpus, actor_cpus)
    with bind(host, port, key) as bound, _engines(load, cluster) as engines:
        names = [name or (Path(model).resolve().name if Path(model).is_dir() else model)]
        shown = f"{names[0]} is served at {web_address(host, port)}/v1, {'with' if key else 'without'} a key"
        listen(bound)
        typer.echo(shown if cluster is None else f"{shown}, by {counted_name(len(engines), 'replica')}", err=True)
        serve(engines, limits, names, key, bound, grace)


def _engine(request: SamplingRequest, spec: MethodSpec, plan: Any) -> Engine:
    from ...serve.engine import Engine

    return Engine(pipelines.load(request), spec.name, spec.all_options(), plan)


@contextmanager
def _engines(load: Callable[[], Engine], cluster: Cluster | None) -> Iterator[list[Any]]:
    """The engine of this process, or those of a cluster, which is left at the end."""
    if cluster is None:
        yield [load()]
        return
    from ...serve.replicas import replicas

    with joined(cluster) as pool:
        yield replicas(pool, load)


def _plan(file: Path | None) -> Any:
    from ...plan import read_plan

    return read_plan(str(file)) if file is not None else None
