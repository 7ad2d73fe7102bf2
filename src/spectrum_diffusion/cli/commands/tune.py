"""The command ``spectrum tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .. import outputs, tuning
from ..app import app
from ..completion import complete_method
from ..guard import interruptible
from ..options import (
    AsJson,
    Options,
    PromptFile,
    Prompts,
    Sampling,
    Seed,
    Seeds,
    takes_sampling,
)
from ..printing import echo_json, progress_bar
from ..request import MethodSpec, parse_options, parse_seeds, read_prompts


@app.command("tune")
@takes_sampling
def tune_method(
    prompts: Prompts = None,
    method: Annotated[
        str,
        typer.Option(
            help="An adaptive method: teacache, magcache, easycache or first-block-cache.",
            autocompletion=complete_method,
        ),
    ] = ...,  # type: ignore[assignment]
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Plan to write; several counts give plan-14.json, plan-10.json.")
    ] = ...,  # type: ignore[assignment]
    nfe: Annotated[str, typer.Option(metavar="N[,N…]", help="Wanted evaluations; several give several plans.")] = "14",
    *,
    sampling: Sampling,
    seed: Seed = 0,
    seeds: Seeds = None,
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a method on a model and find its threshold for a wanted number of evaluations."""
    request = sampling.request(read_prompts(prompts or (), prompt_file, sampling.model), parse_seeds(seeds, seed))
    counts, spec = tuning.parse_counts(nfe), MethodSpec(method, parse_options(option or ()))
    spec.check(None)
    outputs.check_json(output)
    with interruptible("Nothing is kept; the same command starts again."), progress_bar() as progress:
        task = progress.add_task("calibration", total=None)
        plans = tuning.tune(
            request, spec, counts, output, lambda done: progress.update(task, advance=1, description=escape(done))
        )
    if as_json:
        echo_json(plans[-1] | ({"plans": plans} if len(plans) > 1 else {}))
        return
    for plan in plans:
        threshold, nfe_of = plan["options"]["threshold"], f"{plan['nfe']:g} of {plan['steps']} steps evaluated"
        typer.echo(f"{plan['output']}  {plan['method']} threshold {threshold:g}: {nfe_of}, {plan['wanted_nfe']} wanted")
