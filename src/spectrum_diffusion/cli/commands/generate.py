"""The command ``spectrum generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ...bench import mp4
from .. import batch, outputs, pipelines
from ..app import app
from ..guard import MistakeError, interruptible, sampling_failures
from ..options import (
    ActorCpus,
    ActorGpus,
    Actors,
    AsJson,
    Method,
    Options,
    PlanFile,
    PromptFile,
    Prompts,
    Ray,
    Sampling,
    Seed,
    Seeds,
    Site,
    Speedup,
    cluster_of,
    shared_options,
    takes_sampling,
)
from ..printing import echo_json, progress_bar
from ..request import MethodSpec, SamplingRequest, join_options, parse_options, parse_seeds, read_prompts

if TYPE_CHECKING:
    from rich.progress import Progress

    from ...bench.evaluate.sampling import Sample


@app.command()
@takes_sampling
def generate(
    prompts: Prompts = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write. {prompt}, {seed} and {index} are filled in; equal names get -0, -1 …. A folder with "
            "--prompts: one file for each prompt and seed, and the same command goes on after an interruption.",
        ),
    ] = ...,  # type: ignore[assignment]
    *,
    sampling: Sampling,
    method: Method = None,
    plan: PlanFile = None,
    speedup: Speedup = None,
    site: Site = None,
    seed: Seed = 0,
    fps: Annotated[int, typer.Option(min=1, help="Frames per second of a video.")] = mp4.FPS,
    prompt_file: PromptFile = None,
    option: Options = None,
    seeds: Seeds = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="Kind of the files in a folder: png, jpg, webp, mp4 … (default: png)")
    ] = None,
    ray: Ray = None,
    actors: Actors = None,
    actor_gpus: ActorGpus = None,
    actor_cpus: ActorCpus = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of an hour of one pipeline, for the cost per image.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate images or videos."""
    request = sampling.request(read_prompts(prompts or (), prompt_file, sampling.model), parse_seeds(seeds, seed))
    options = join_options(shared_options(speedup, site), parse_options(option or ()))
    spec = MethodSpec.planned(str(plan), options, method) if plan else MethodSpec(method or "spectrum", options)
    spec.check(request.steps)
    how = batch.Batch(file_format, cluster_of(ray, actors, actor_gpus, actor_cpus), price)
    if batch.is_batch(output, prompt_file):
        batch.run(request, spec, output, how, fps, as_json)
        return
    if how != batch.Batch() or len(request.seeds) > 1:
        raise MistakeError(
            f"--output {output} is a file, but several seeds, --format, --ray, --price and the options of actors fill "
            "a folder: give --prompts and a folder"
        )
    outputs.check_output(output)
    with interruptible("Finished files are kept; the same command generates all of them again."):
        results = _generate(request, spec, output, fps)
    if as_json:
        echo_json({**results[-1], "outputs": results})
        return
    for result in results:
        counts = f"{result['steps']} steps, {result['nfe']} evaluated, {result['speedup']:.2f}x fewer"
        typer.echo(f"{result['output']}  {counts}, {result['seconds']:.1f} s")


def _generate(request: SamplingRequest, spec: MethodSpec, output: Path, fps: int) -> list[dict[str, Any]]:
    from ...bench.batch import Item

    pipe = pipelines.load(request)
    outputs.check_kind(output, pipelines.makes_videos(pipe))
    spec.check(pipelines.steps_of(pipe, request))
    results = []
    with progress_bar() as progress:
        for prompt, path in zip(
            request.prompts, outputs.paths_for(output, request.prompts, request.seeds[0]), strict=True
        ):
            result = _sample(pipe, request, spec, prompt, progress)
            if request.frames not in (None, len(result.frames)):
                typer.echo(
                    f"Warning: {path} has {len(result.frames)} frames, not {request.frames}: the model rounds",
                    err=True,
                )
            outputs.save(
                path,
                result.frames,
                batch.provenance(request, spec, Item(prompt, request.seeds[0], path.name), result),
                fps,
            )
            results.append(_result(request, spec, prompt, path, result, pipelines.steps_of(pipe, request)))
    return results


def _sample(pipe: Any, request: SamplingRequest, spec: MethodSpec, prompt: str, progress: Progress) -> Sample:
    """Sample one prompt, with a bar over its steps."""
    from ...bench.evaluate.request import Case
    from ...bench.evaluate.sampling import sample
    from ...bench.prompts import Prompt

    task, steps_done = progress.add_task(escape(prompt), total=None), 0

    def show(step: int, branch: str, action: str, reason: str) -> None:
        nonlocal steps_done
        steps_done = step + 1
        total = len(getattr(pipe.scheduler, "timesteps", ())) or steps_done
        progress.update(task, completed=steps_done, total=total)

    case, row = Case(Prompt(prompt), request.seeds[0]), spec.row()
    with sampling_failures(pipe, lambda: steps_done > 0):
        return sample(pipe, case, request.call_options(), row, on_step=show)


def _result(
    request: SamplingRequest, spec: MethodSpec, prompt: str, path: Path, result: Sample, asked: int | None
) -> dict[str, Any]:
    """What one output took; steps and speed-up are those of the untouched pipeline, for fewer-steps too."""
    summary = result.summary
    assert summary is not None
    steps = spec.untouched_steps(summary.steps, asked)
    return {
        "output": str(path),
        "steps": steps,
        "nfe": summary.nfe,
        "evaluated": summary.evaluated,
        "speedup": steps / summary.nfe if summary.nfe else 1.0,
        "seed": request.seeds[0],
        "prompt": prompt,
        "model": request.model,
        "method": spec.name,
        "options": spec.all_options(),
        "package": summary.to_dict()["package"],
        "fallbacks": summary.to_dict()["fallbacks"],
        "seconds": result.spent.seconds,
    }
