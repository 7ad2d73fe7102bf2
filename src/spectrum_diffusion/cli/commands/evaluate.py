"""The command ``spectrum evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import evaluation, outputs
from ..app import app
from ..guard import interruptible
from ..options import (
    ActorCpus,
    ActorGpus,
    Actors,
    AsJson,
    Methods,
    Options,
    PromptFile,
    Prompts,
    Ray,
    Sampling,
    Seed,
    Seeds,
    Site,
    Speedup,
    cluster_of,
    names_of,
    specs_of,
    takes_sampling,
)
from ..printing import echo_json, exit_for
from ..request import parse_seeds


@app.command()
@takes_sampling
def evaluate(
    prompts: Prompts = None,
    methods: Methods = "fewer-steps, paper, spectrum, taylorseer, fora",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, tables and report.html.")] = ...,  # type: ignore[assignment]
    source: PromptFile = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many prompts.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="psnr,ssim and others such as clip_score, image_reward, vbench_quality. (default: every available one)"
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Model of clip_score. Default: CLIP ViT-L/14.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method to compare the others with. (default: fewer-steps)")
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="Also compare the latents after each step.")] = False,
    *,
    sampling: Sampling,
    speedup: Speedup = None,
    site: Site = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    option: Options = None,
    ray: Ray = None,
    actors: Actors = None,
    actor_gpus: ActorGpus = None,
    actor_cpus: ActorCpus = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods over many prompts: metrics with intervals, cost, a report. Given again, it goes on."""
    listed = evaluation.find_prompts(prompts or [], source, limit, sampling.model)
    request = sampling.request(tuple(prompt.text for prompt in listed), parse_seeds(seeds, seed))
    specs = specs_of(methods, speedup, site, option)
    cluster = cluster_of(ray, actors, actor_gpus, actor_cpus)
    outputs.check_folder(output)
    settings = {"metrics": names_of(metrics), "clip": clip, "baseline": baseline, "path": path}
    with interruptible(f"Finished results are kept in {output}; the same command goes on from there."):
        asked = evaluation.library_request(request, specs, listed, **settings)
        if cluster is not None:
            results = evaluation.evaluate_on(cluster, request, asked, output)
        else:
            from ...bench.evaluate import evaluate as engine

            results = evaluation.evaluate_with(engine, request, asked, output)
    if as_json:
        echo_json(evaluation.to_dict(results))
    else:
        evaluation.show(results)
    exit_for(results.failures | results.problems)
