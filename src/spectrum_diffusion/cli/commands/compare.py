"""The command ``spectrum compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...bench import mp4
from ...core.words import counted_name
from ...plan import versions
from .. import evaluation, outputs
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
from ..printing import echo_json, exit_for, print_table
from ..request import MethodSpec, SamplingRequest, parse_seeds, read_prompts

if TYPE_CHECKING:
    from ...bench.comparison import Comparison


@app.command()
@takes_sampling
def compare(
    prompts: Prompts = None,
    methods: Methods = "fewer-steps, reuse, taylor, paper, spectrum",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for grid.png, results.json, images.")] = ...,  # type: ignore[assignment]
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
    """Sample with the untouched pipeline and with several methods, side by side. Given again, it continues."""
    request = sampling.request(read_prompts(prompts or (), prompt_file, sampling.model), parse_seeds(seeds, seed))
    specs = specs_of(methods, speedup, site, option)
    outputs.check_folder(output)
    with interruptible(f"Finished images are kept in {output}; the same command continues from there."):
        failures = _compare(request, specs, output, as_json)
    exit_for(failures)


def _compare(request: SamplingRequest, specs: tuple[MethodSpec, ...], folder: Path, as_json: bool) -> dict[str, str]:
    """Sample, write and show; the reasons of the methods that failed."""
    from ...bench.comparison import METRICS, compare
    from ...bench.prompts import Prompt

    asked = evaluation.library_request(request, specs, [Prompt(text) for text in request.prompts])
    result = evaluation.evaluate_with(compare, request, asked, folder)
    grid, video = folder / "grid.png", folder / "grid.mp4"
    values = {**asdict(request), "steps": result.steps, "methods": result.lines()}
    outputs.save_json(folder / "results.json", {**values, "versions": versions()})
    outputs.save_image(grid, result.grid(), {**values, "versions": versions()})
    video.unlink(missing_ok=True)  # of another comparison
    if result.frames > 1 and mp4.can_write():
        outputs.save(video, [result.grid(frame) for frame in range(result.frames)], {}, mp4.FPS)
    shown = {"video": str(video)} if video.is_file() else {}
    if as_json:
        echo_json({"output": str(folder), "grid": str(grid), **shown, **values})
    else:
        print_table(_table(request, result))
        Console().print(f"images: {shown.get('video', grid)}", highlight=False, soft_wrap=True)
    if problem := METRICS["ssim"].available():
        typer.echo(f"without SSIM: {problem}", err=True)
    return result.results.failures


def _table(request: SamplingRequest, result: Comparison) -> Table:
    """NFE, time and similarity of each method."""
    from ...core.words import number

    sample = "video" if result.frames > 1 else "image"
    count = counted_name(len(result.references), sample)
    table = Table(title=escape(f"{request.model}, {result.steps} steps, {count}"))
    table.add_column("method", overflow="fold")
    for name in ("NFE", f"s/{sample}", "evaluations", "PSNR dB", "SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in result.lines():
        table.add_row(
            escape(f"{line['method']} (failed)" if line["error"] else line["method"]),
            "–" if line["nfe"] is None else str(line["nfe"]),
            number(line["seconds"], ".2f"),
            number(line["speedup"], ".2f", "x fewer"),
            "∞" if line["identical"] else number(line["psnr"], ".2f"),
            number(line["ssim"], ".4f"),
        )
    return table
