"""The command ``spectrum reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import outputs, reproduction
from ..app import app
from ..guard import MistakeError
from ..options import AsJson, Device, Dtype, Offload, names_of
from ..printing import echo_json, exit_for


@app.command("reproduce")
def reproduce_paper(
    tables: Annotated[
        list[str], typer.Argument(metavar="TABLE…", help="table1 … table8, fig3 … fig11, methods, or all.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures and results.md.")] = ...,  # type: ignore[assignment]
    model: Annotated[
        str, typer.Option(help="tiny: the small trained models of this checkout; real: the paper's, from the Hub.")
    ] = "tiny",
    pairs: Annotated[
        int, typer.Option(min=1, help="Pictures a row, each of another prompt; a quarter of it for videos.")
    ] = 32,
    metrics: Annotated[
        str | None, typer.Option(help="psnr,ssim,…; without, the paper's that can be had here, FLIP for LPIPS if not.")
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
    """Run the paper's tables and figures again, ours beside its numbers. Given again, it goes on."""
    if model not in ("tiny", "real"):
        raise MistakeError(f"--model {model!r} is unknown: choose tiny or real")
    if weights and model != "real":
        raise MistakeError("--weights is for the paper's models: add --model real")
    job = reproduction.Job(
        reproduction.chosen(tables),
        model == "real",
        pairs,
        output,
        names_of(metrics),
        reproduction.parse_weights(weights or ()),
        source,
        clip,
        {"device": device, "dtype": dtype, "offload": offload},
    )
    outputs.check_folder(output)
    found = reproduction.run(job)
    path = output / reproduction.PAGE
    if as_json:
        echo_json({"output": str(path), "tables": job.names})
    else:
        typer.echo(path.read_text(encoding="utf-8"))
        typer.echo(f"written: {path}")
    exit_for(reproduction.failures(job, found))
