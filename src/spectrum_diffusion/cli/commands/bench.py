"""The command ``spectrum bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import outputs
from ..app import app
from ..completion import complete_methods
from ..guard import interruptible
from ..options import AsJson, Dtype, Frames, Options, Site, Size, Speedup, specs_of
from ..printing import echo_json, exit_for, print_markdown
from ..request import DTYPES, MethodSpec, check_choice, parse_size

if TYPE_CHECKING:
    from ...bench.speed import Setting

RIVALS = {"cache-dit": "cache-dit:dbcache", "diffusers": "diffusers:taylorseer"}
"""Short names of packages, for the cache that each recommends."""


@app.command()
def bench(
    arch: Annotated[str, typer.Option(help="flux, flux2, sd35-large, wan-14b, wan-1.3b, hunyuan, qwen-image or sdxl.")],
    method: Annotated[
        str, typer.Option(help="Methods to measure, see `spectrum methods`.", autocompletion=complete_methods)
    ] = "spectrum",
    against: Annotated[
        str | None, typer.Option(help="Methods to measure beside them, such as cache-dit,diffusers:taylorseer.")
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Factor of depth, width, pixels and frames; 1 is the published size.")
    ] = 1.0,
    size: Size = None,
    frames: Frames = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampling steps.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Images or videos for each prompt.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed generations of each method.")] = 3,
    speedup: Speedup = None,
    site: Site = None,
    option: Options = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the repeated blocks.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, cpu … (default: the best of this machine)")] = None,
    dtype: Dtype = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute memory and FLOP from shapes; nothing is measured.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the JSON, the table and the plot.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory on a full-size architecture with random weights, without a download."""
    specs = (*specs_of(method, speedup, site, option), *_rivals(against))
    setting = _setting(arch, scale, size, frames, steps, batch, device, dtype, compiled)
    if output is not None:
        outputs.check_folder(output)
    with interruptible():
        result = _measure(arch, setting, specs, repeats, dry_run)
    if output is not None:
        _save(result, output)
    if as_json:
        echo_json(result)
    else:
        from ...bench.speed import report

        print_markdown(report.table([result]))
    exit_for({row["method"]: row["error"] for row in result["rows"] if row["error"]})


def _rivals(against: str | None) -> tuple[MethodSpec, ...]:
    if against is None:
        return ()
    names = ",".join(RIVALS.get(name.strip(), name.strip()) for name in against.split(","))
    return specs_of(names, None, None, None)


def _setting(
    arch: str,
    scale: float,
    size: str | None,
    frames: int | None,
    steps: int,
    batch: int,
    device: str | None,
    dtype: str | None,
    compiled: bool,
) -> Setting:
    import torch

    from ...bench.speed import ARCHITECTURES, Setting

    check_choice("--arch", arch, ARCHITECTURES)
    if dtype is not None:
        check_choice("--dtype", dtype, DTYPES)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    width, height = parse_size(size) or (None, None)
    kind = getattr(torch, dtype) if dtype else torch.float32 if place == "cpu" and scale < 1 else torch.bfloat16
    return Setting(ARCHITECTURES[arch], scale, height, width, frames, steps, batch, place, kind, compiled)


def _measure(arch: str, setting: Setting, specs: tuple[MethodSpec, ...], repeats: int, dry_run: bool) -> dict[str, Any]:
    from ...bench import speed

    methods = {spec.label: (spec.name, spec.all_options()) for spec in specs}
    if dry_run:
        return speed.dry_run(arch, setting, methods).to_dict()
    return speed.measure_speed(arch, setting, methods, repeats).to_dict()


def _save(result: dict[str, Any], folder: Path) -> None:
    from ...bench.speed import report

    name = f"{result['arch']}-dry-run" if result["kind"] == "dry run" else result["arch"]
    outputs.save_json(folder / f"{name}.json", result)
    (folder / f"{name}.md").write_text(report.table([result]) + "\n", encoding="utf-8")
    if result["kind"] == "measured":
        report.plot([result], folder / f"{name}.png")
