"""The command ``spectrum reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import outputs, reproduction
from ..app import app
from ..guard import FAILURE, MistakeError, interruptible
from ..options import AsJson, Device, Dtype, Offload, names_of
from ..printing import echo_json, print_markdown
from ..request import check_choice


@app.command("reproduce")
def reproduce_paper(
    tables: Annotated[
        list[str], typer.Argument(metavar="TABLE…", help="table1 … table8, fig3 … fig11, methods, or all.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for images, plots and results.md.")] = ...,  # type: ignore[assignment]
    model: Annotated[
        str, typer.Option(help="tiny: the small trained models of this checkout; real: the paper's, from the Hub.")
    ] = "tiny",
    only: Annotated[
        str | None,
        typer.Option(metavar="KEY,…", help="Run on these models alone: flux, sd3, wan, hunyuan, sdxl, rough."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Images per row, each of another prompt; videos get a quarter.")
    ] = 32,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="psnr,ssim,… (default: the paper's metrics that are available, FLIP for LPIPS without weights)"
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=DIR|ID", help="With real: what to load for flux, sd3, wan, hunyuan or sdxl."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--prompts", metavar="LIST|FILE", help="Prompts of all tables, in place of their own.")
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="DIR|ID", help="CLIP model of the CLIP Score.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    as_json: AsJson = False,
) -> None:
    """Run the paper's tables and figures again, beside its numbers. The same command continues an interrupted run."""
    check_choice("--model", model, ("tiny", "real"))
    if weights and model != "real":
        raise MistakeError("--weights is for the paper's models: add --model real")
    job = reproduction.make_job(
        reproduction.parse_tables(tables),
        output,
        {"device": device, "dtype": dtype, "offload": offload},
        real=model == "real",
        only=reproduction.parse_models(names_of(only) or ()),
        images=pairs,
        metrics=names_of(metrics),
        weights=reproduction.parse_weights(weights or ()),
        prompts=source,
        clip=clip,
    )
    outputs.check_folder(output)
    with interruptible(f"Finished results are kept in {output}; the same command goes on from there."):
        results = reproduction.run_job(job)
    path = output / "results.md"
    if as_json:
        echo_json({"output": str(path), "tables": job.tables})
    else:
        if any(result.results for result in results):  # else the page says no more than the failures on stderr
            print_markdown(path.read_text(encoding="utf-8"))
        typer.echo(f"written: {path}")
    if not all(result.results for result in results):  # the reasons were told when each model failed
        raise typer.Exit(FAILURE)
