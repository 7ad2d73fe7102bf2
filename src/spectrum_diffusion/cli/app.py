"""The commands: options in, checks, work, one result on stdout; all else goes to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..bench import mp4
from ..plan import versions
from . import catalog, doctor, evaluation, outputs, reproduction, tuning
from .guard import FAILURE, GuardedGroup, MistakeError, errors_console, set_up_logging
from .request import (
    DEFAULT_MODEL,
    MethodSpec,
    Request,
    parse_methods,
    parse_options,
    parse_seeds,
    parse_size,
    read_prompts,
)

if TYPE_CHECKING:
    from ..bench.sampling import Drawing

app = typer.Typer(
    cls=GuardedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sample from diffusion models several times faster, by forecasting most of the denoiser's features.",
)

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="What to draw; one or more.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt a line.")]
Model = Annotated[str, typer.Option(help="A folder of a diffusers pipeline, an id on the Hub, or a shipped model.")]
Speedup = Annotated[float | None, typer.Option(help="Wanted steps / evaluations; the method's default without.")]
Site = Annotated[str | None, typer.Option(help="Where features are kept: last_block, output or module.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler; the pipeline's default without.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise, the same for every prompt.")]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,…", help="Several seeds, in place of --seed.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; the pipeline's default without.")]
Size = Annotated[str | None, typer.Option(metavar="N|WxH", help="Size in pixels; the pipeline's default without.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a video; the pipeline's default without.")]
Device = Annotated[str | None, typer.Option(help="cuda, mps, cpu …; the best of this machine without.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16; bfloat16 on an accelerator, else float32.")
]
Offload = Annotated[str, typer.Option(help="Keep weights off the accelerator: none, model, sequential or group.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the method; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]


def main() -> None:
    """Entry point of the command ``spectrum``."""
    app(prog_name="spectrum")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more on stderr; -vv all.")] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_up_logging(verbose)


@app.command()
def generate(
    prompts: Prompts = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write; several prompts give -0, -1 … or fill in {index}."),
    ] = ...,  # type: ignore[assignment]
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        str | None, typer.Option(help="Name of the method, see `spectrum methods`; spectrum without.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan of `spectrum tune`: its method and options.")] = None,
    speedup: Speedup = None,
    site: Site = None,
    steps: Steps = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second of a video.")] = mp4.FPS,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures or videos."""
    request = Request(
        prompts=read_prompts(prompts or (), prompt_file),
        seeds=(seed,),
        model=model,
        steps=steps,
        guidance=guidance,
        size=parse_size(size),
        frames=frames,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    options = {**_shared_options(speedup, site), **parse_options(option or ())}
    spec = MethodSpec.planned(str(plan), options, method) if plan else MethodSpec(method or "spectrum", options)
    spec.check(steps)
    outputs.check_output(output)
    results = _generate(request, spec, output, fps)
    if as_json:
        _echo_json(results[-1] | ({"outputs": results} if len(results) > 1 else {}))
        return
    for result in results:
        counts = f"{result['steps']} steps, {result['nfe']} evaluated, {result['speedup']:.2f}x fewer"
        typer.echo(f"{result['output']}  {counts}, {result['seconds']:.1f} s")


@app.command()
def compare(
    prompts: Prompts = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with options if wanted: taylor:order=2,speedup=5,paper,plan:FILE.")
    ] = ("fewer-steps,reuse,taylor,paper,spectrum"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for grid.png and results.json.")] = ...,  # type: ignore[assignment]
    model: Model = DEFAULT_MODEL,
    speedup: Speedup = None,
    site: Site = None,
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Draw with the untouched pipeline and with several methods, side by side."""
    request = Request(
        prompts=read_prompts(prompts or (), prompt_file),
        seeds=parse_seeds(seeds, seed),
        model=model,
        steps=steps,
        guidance=guidance,
        size=parse_size(size),
        frames=frames,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    specs = _specs(methods, speedup, site, option)
    outputs.check_folder(output)
    _exit_for(_compare(request, specs, output, as_json))


@app.command()
def evaluate(
    prompts: Prompts = None,
    methods: Annotated[str, typer.Option(help="Methods, with options if wanted: taylor:order=2,paper,plan:FILE.")] = (
        "fewer-steps,paper,spectrum,taylorseer,fora"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, tables and report.html.")] = ...,  # type: ignore[assignment]
    source: Annotated[
        str | None, typer.Option("--prompts", metavar="LIST|FILE", help="tiny, drawbench, coco, vbench, or a file.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many prompts.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="psnr,ssim,clip_score,image_reward,vbench_quality,…; without, what is at hand.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="CLIP model of clip_score; CLIP ViT-L/14 without.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; fewer-steps without.")
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="Also compare the latents after each step.")] = False,
    model: Model = DEFAULT_MODEL,
    speedup: Speedup = None,
    site: Site = None,
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods over many prompts: metrics with intervals, cost, a report. Given again, it goes on."""
    found = evaluation.find_prompts(prompts or [], source, limit, model)
    request = Request(
        prompts=tuple(prompt.text for prompt in found),
        seeds=parse_seeds(seeds, seed),
        model=model,
        steps=steps,
        guidance=guidance,
        size=parse_size(size),
        frames=frames,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    specs = _specs(methods, speedup, site, option)
    outputs.check_folder(output)
    asked = {"metrics": _names(metrics), "clip": clip, "baseline": baseline, "path": path}
    results = evaluation.evaluate(request, specs, found, output, **asked)
    if as_json:
        _echo_json(evaluation.to_dict(results))
    else:
        evaluation.show(results)
    _exit_for(results.failures | results.problems)


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
        _names(metrics),
        reproduction.parse_weights(weights or ()),
        source,
        clip,
        {"device": device, "dtype": dtype, "offload": offload},
    )
    outputs.check_folder(output)
    found = reproduction.run(job)
    path = output / reproduction.PAGE
    if as_json:
        _echo_json({"output": str(path), "tables": job.names})
    else:
        typer.echo(path.read_text(encoding="utf-8"))
        typer.echo(f"written: {path}")
    _exit_for(reproduction.failures(job, found))


@app.command("tune")
def tune_method(
    prompts: Prompts = None,
    method: Annotated[
        str, typer.Option(help="One that decides while it runs: teacache, magcache, easycache, first-block-cache.")
    ] = ...,  # type: ignore[assignment]
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Plan to write; several counts give plan-14.json, plan-10.json.")
    ] = ...,  # type: ignore[assignment]
    nfe: Annotated[str, typer.Option(metavar="N[,N…]", help="Wanted evaluations; several give several plans.")] = "14",
    model: Model = DEFAULT_MODEL,
    steps: Steps = None,
    seed: Seed = 0,
    seeds: Seeds = None,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    prompt_file: PromptFile = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a method on a model and find its threshold for a wanted number of evaluations."""
    request = Request(
        prompts=read_prompts(prompts or (), prompt_file),
        seeds=parse_seeds(seeds, seed),
        model=model,
        steps=steps,
        guidance=guidance,
        size=parse_size(size),
        frames=frames,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    counts, spec = tuning.parse_counts(nfe), MethodSpec(method, parse_options(option or ()))
    spec.check(None)
    outputs.check_json(output)
    with _progress() as progress:
        task = progress.add_task("calibration", total=None)
        plans = tuning.tune(
            request, spec, counts, output, lambda done: progress.update(task, advance=1, description=escape(done))
        )
    if as_json:
        _echo_json(plans[-1] | ({"plans": plans} if len(plans) > 1 else {}))
        return
    for plan in plans:
        threshold, nfe_of = plan["options"]["threshold"], f"{plan['nfe']:g} of {plan['steps']} steps evaluated"
        typer.echo(f"{plan['output']}  {plan['method']} threshold {threshold:g}: {nfe_of}, {plan['wanted_nfe']} wanted")


@app.command("methods")
def list_methods(as_json: AsJson = False) -> None:
    """List the methods with their options."""
    found = catalog.methods()
    if as_json:
        _echo_json({"methods": found})
        return
    console = Console(highlight=False)
    for method in found:
        options = ", ".join(
            f"{name}={'–' if value is None else value}" for name, value in method["options"].items() if name != "site"
        )
        console.print(f"[bold]{escape(method['name'])}[/bold]  {escape(method['idea'].replace('``', ''))}")
        grid = Table.grid(padding=(0, 2))
        grid.add_row("   can do", escape(method["limits"]))
        grid.add_row("   sites", ", ".join(method["sites"]))
        if method["package"]:
            grid.add_row("   package", escape(method["package"]))
        grid.add_row("   options", escape(options))
        console.print(grid)


@app.command("models")
def list_models(as_json: AsJson = False) -> None:
    """List the small trained models, and the denoiser classes of the installed diffusers."""
    shipped, found = catalog.shipped_models(), catalog.denoisers()
    if as_json:
        _echo_json({"shipped": shipped, "denoisers": found})
        return
    table = Table(
        "denoiser",
        "site",
        "blocks → tail, or why there is none",
        title="Denoisers of the installed diffusers",
    )
    for row in found:
        way = f"{', '.join(row['blocks'])} → {', '.join(row['tail'])}" if row["blocks"] else row["reason"]
        table.add_row(row["class"], row["site"], escape(way))
    console = Console()
    console.print(f"Small trained models here, for --model: [bold]{', '.join(shipped)}[/bold]", highlight=False)
    console.print(table)
    console.print('Any other denoiser: site="output", or register_denoiser.', highlight=False)


@app.command("doctor")
def examine(as_json: AsJson = False) -> None:
    """Say what is installed, what is missing for what, and what this machine can do."""
    report = doctor.examine()
    if as_json:
        _echo_json(report)
    else:
        _print_report(report)
    if not report["healthy"]:
        raise typer.Exit(FAILURE)


def _generate(request: Request, spec: MethodSpec, output: Path, fps: int) -> list[dict[str, Any]]:
    from ..bench.sampling import draw, load, makes_videos, steps_of

    pipe = load(request)
    _check_kind(output, makes_videos(pipe))
    spec.check(steps_of(pipe, request))
    results = []
    with _progress() as progress:
        for prompt, path in zip(request.prompts, outputs.numbered(output, len(request.prompts)), strict=True):
            task = progress.add_task(escape(prompt), total=None)

            def show(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            drawing = draw(pipe, request, prompt, request.seeds[0], spec, show)
            outputs.save(path, drawing.frames, _provenance(request, spec, prompt, drawing), fps)
            results.append(_result(request, spec, prompt, path, drawing))
    return results


def _compare(request: Request, specs: tuple[MethodSpec, ...], folder: Path, as_json: bool) -> dict[str, str]:
    """Draw, write and show; the reasons of the methods that failed."""
    from ..bench import comparison
    from ..bench.sampling import load

    pipe = load(request)
    pictures = len(request.prompts) * len(request.seeds) * (1 + len(specs))
    with _progress() as progress:
        task = progress.add_task("reference", total=pictures)
        result = comparison.compare(
            pipe, request, specs, lambda label: progress.update(task, advance=1, description=escape(label))
        )
    grid, video, results = folder / "grid.png", folder / "grid.mp4", comparison.to_dict(result)
    folder.mkdir(parents=True, exist_ok=True)
    outputs.save_json(folder / "results.json", {**results, "versions": versions()})
    outputs.save_picture(grid, comparison.grid_of(result), {**results, "versions": versions()})
    video.unlink(missing_ok=True)  # of another comparison
    if (frames := comparison.frames_of(result)) > 1 and mp4.can_write():
        outputs.save(video, [comparison.grid_of(result, place) for place in range(frames)], {}, mp4.FPS)
    found = {"video": str(video)} if video.is_file() else {}
    if as_json:
        _echo_json({"output": str(folder), "grid": str(grid), **found, **results})
    else:
        console = Console()
        console.print(comparison.table_of(result))
        console.print(f"pictures: {found.get('video', grid)}", highlight=False, soft_wrap=True)
    if problem := comparison.METRICS["ssim"].available():
        typer.echo(f"without SSIM: {problem}", err=True)
    return result.failures


def _specs(methods: str, speedup: float | None, site: str | None, option: list[str] | None) -> tuple[MethodSpec, ...]:
    """The methods to compare, checked as far as they can be before a model is there."""
    specs = parse_methods(methods, {**_shared_options(speedup, site), **parse_options(option or ())})
    for spec in specs:
        spec.check(None)
    return specs


def _names(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` → names; None where nothing was asked for."""
    return tuple(name.strip() for name in text.split(",")) if text else None


def _exit_for(failures: Mapping[str, str]) -> None:
    """Say which rows failed and why, and end with an error if any did."""
    for label, reason in failures.items():
        typer.echo(f"{label} failed: {reason}", err=True)
    if failures:
        raise typer.Exit(FAILURE)


def _shared_options(speedup: float | None, site: str | None) -> dict[str, Any]:
    return {name: value for name, value in (("speedup", speedup), ("site", site)) if value is not None}


def _check_kind(output: Path, makes_videos: bool) -> None:
    if makes_videos != (output.suffix.lower() in outputs.VIDEOS):
        makes, wanted = ("videos", outputs.VIDEOS) if makes_videos else ("pictures", outputs.PICTURES)
        raise MistakeError(f"--output {output}: this model makes {makes}: end the name with one of {', '.join(wanted)}")


def _provenance(request: Request, spec: MethodSpec, prompt: str, drawing: Drawing) -> dict[str, Any]:
    """What it takes to draw the same picture again. No time in it: the same call gives the same bytes."""
    summary = drawing.summary
    assert summary is not None
    return {
        "prompt": prompt,
        "seed": request.seeds[0],
        "model": request.model,
        "method": spec.name,
        "options": spec.all_options(),
        "package": summary.to_dict()["package"],
        "call": request.call_options(),
        "steps": summary.steps,
        "evaluated": summary.evaluated,
        "versions": versions(),
    }


def _result(request: Request, spec: MethodSpec, prompt: str, path: Path, drawing: Drawing) -> dict[str, Any]:
    summary = drawing.summary
    assert summary is not None
    return {
        "output": str(path),
        "steps": summary.steps,
        "nfe": summary.nfe,
        "evaluated": summary.evaluated,
        "speedup": summary.speedup,
        "seed": request.seeds[0],
        "prompt": prompt,
        "model": request.model,
        "method": spec.name,
        "options": spec.all_options(),
        "package": summary.to_dict()["package"],
        "fallbacks": summary.to_dict()["fallbacks"],
        "seconds": drawing.seconds,
    }


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    console.print(f"spectrum-diffusion {report['version']}, Python {report['python']}, {report['platform']}")
    table = Table("package", "version", "state", "for", "how to get it")
    for package in report["packages"]:
        state = package["state"] + (f": {package['problem']}" if package["problem"] else "")
        install = "" if package["state"] == "ok" else package["install"]
        cells = (package["name"], package["version"] or "–", state, package["purpose"], install)
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    for device in report["devices"]:
        memory = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
        console.print(f"{device['device']}: {device['name']}{memory}")
    console.print(f"bfloat16 on the CPU: {report['cpu_bfloat16'] or 'unknown'}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr, only if that is a terminal."""
    console = errors_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _echo_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
