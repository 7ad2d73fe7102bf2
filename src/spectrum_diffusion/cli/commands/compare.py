"""The command ``spectrum compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ...bench import mp4
from ...plan import versions
from .. import outputs
from ..app import app
from ..guard import interruptible
from ..options import (
    AsJson,
    Methods,
    Options,
    PromptFile,
    Prompts,
    Sampling,
    Seed,
    Seeds,
    Site,
    Speedup,
    specs_of,
    takes_sampling,
)
from ..printing import echo_json, exit_for, progress_bar
from ..request import MethodSpec, Request, parse_seeds, read_prompts


@app.command()
@takes_sampling
def compare(
    prompts: Prompts = None,
    methods: Methods = "fewer-steps,reuse,taylor,paper,spectrum",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for grid.png and results.json.")] = ...,  # type: ignore[assignment]
    *,
    sampling: Sampling,
    speedup: Speedup = None,
    site: Site = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Sample with the untouched pipeline and with several methods, side by side."""
    request = sampling.request(read_prompts(prompts or (), prompt_file, sampling.model), parse_seeds(seeds, seed))
    specs = specs_of(methods, speedup, site, option)
    outputs.check_folder(output)
    with interruptible("Nothing is kept; the same command starts again, where `spectrum evaluate` would go on."):
        failures = _compare(request, specs, output, as_json)
    exit_for(failures)


def _compare(request: Request, specs: tuple[MethodSpec, ...], folder: Path, as_json: bool) -> dict[str, str]:
    """Draw, write and show; the reasons of the methods that failed."""
    from ...bench import comparison
    from ...bench.sampling import load

    pipe = load(request)
    pictures = len(request.prompts) * len(request.seeds) * (1 + len(specs))
    with progress_bar() as progress:
        task = progress.add_task("reference", total=pictures)
        result = comparison.compare(
            pipe, request, specs, lambda label: progress.update(task, advance=1, description=escape(label))
        )
    grid, video, results = folder / "grid.png", folder / "grid.mp4", comparison.to_dict(result)
    folder.mkdir(parents=True, exist_ok=True)
    outputs.save_json(folder / "results.json", {**results, "versions": versions()})
    outputs.save_image(grid, comparison.grid_of(result), {**results, "versions": versions()})
    video.unlink(missing_ok=True)  # of another comparison
    if (frames := comparison.frames_of(result)) > 1 and mp4.can_write():
        outputs.save(video, [comparison.grid_of(result, place) for place in range(frames)], {}, mp4.FPS)
    found = {"video": str(video)} if video.is_file() else {}
    if as_json:
        echo_json({"output": str(folder), "grid": str(grid), **found, **results})
    else:
        console = Console()
        console.print(comparison.table_of(result))
        console.print(f"images: {found.get('video', grid)}", highlight=False, soft_wrap=True)
    if problem := comparison.METRICS["ssim"].available():
        typer.echo(f"without SSIM: {problem}", err=True)
    return result.failures
