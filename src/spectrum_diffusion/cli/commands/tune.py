"""The command ``spectrum tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
            help="spectrum, or an adaptive method: teacache, magcache, easycache or first-block-cache.",
            autocompletion=complete_method,
        ),
    ] = tuning.PLANNED,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Plan to write; several counts give plan-14.json, plan-10.json.")
    ] = ...,  # type: ignore[assignment]
    nfe: Annotated[
        str | None, typer.Option(metavar="N[,N…]", help="Wanted evaluations; several give several plans. (default: 14)")
    ] = None,
    *,
    sampling: Sampling,
    speedup: Annotated[float | None, typer.Option(help="Steps divided by evaluations, in place of --nfe.")] = None,
    pairs: Annotated[
        int | None, typer.Option(help="spectrum: pairs of prompt and seed to fit to. (default: 24)")
    ] = None,
    held_out: Annotated[int | None, typer.Option(help="spectrum: pairs to validate on. (default: 16)")] = None,
    runs: Annotated[int | None, typer.Option(help="spectrum: schedules that the search tries. (default: 100)")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="10m", help="spectrum: time for each search, in s, m or h. (default: no limit)"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="spectrum: most pairs sampled at once. (default: all that fit)")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="spectrum: a calibrated method of others: budcache, l2p, lemica, dpcache, meancache."),
    ] = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Make a plan for a wanted number of evaluations: weights and schedule for spectrum, else a method's threshold."""
    if method == tuning.PLANNED and not prompts and prompt_file is None:
        prompt_file = tuning.default_prompts(sampling.model)
    texts = read_prompts(prompts or (), prompt_file, sampling.model)
    request = sampling.request(texts, parse_seeds(seeds, seed))
    spec = MethodSpec(method, parse_options(option or ()))
    spec.check(None)
    outputs.check_json(output)
    given: dict[str, Any] = {
        "speedup": speedup,
        "pairs": pairs,
        "held_out": held_out,
        "runs": runs,
        "batch": batch,
        "strategy": strategy,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    if nfe is not None:
        wanted["nfe"] = tuning.parse_counts(nfe)
    if budget is not None:
        wanted["seconds"] = tuning.parse_budget(budget)
    kept = "Nothing is kept; the same command starts again."
    if method == tuning.PLANNED:
        kept = f"What was done is kept in {tuning.folder_of(output)}; the same command goes on."
    with interruptible(kept), progress_bar() as progress:
        task = progress.add_task("calibration", total=None)
        plans = tuning.tune(
            request, spec, wanted, output, lambda done: progress.update(task, advance=1, description=escape(done))
        )
    if as_json:
        echo_json(plans[-1] | ({"plans": plans} if len(plans) > 1 else {}))
        return
    for plan in plans:
        typer.echo(tuning.shown(plan))
