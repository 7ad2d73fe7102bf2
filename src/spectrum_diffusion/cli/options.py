"""Options that several commands share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .completion import complete_from, complete_methods, complete_model
from .request import DTYPES, OFFLOADS, MethodSpec, parse_methods, parse_options

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="What to draw; one or more.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt a line.")]
Model = Annotated[
    str,
    typer.Option(
        help="A folder of a diffusers pipeline, an id on the Hub, or a small model.", autocompletion=complete_model
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        help="Methods, with their options after a colon: taylor:order=2,speedup=5,paper,plan:FILE.",
        autocompletion=complete_methods,
    ),
]
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
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16; bfloat16 on an accelerator, else float32.",
        autocompletion=complete_from(DTYPES),
    ),
]
Offload = Annotated[
    str,
    typer.Option(
        help="Keep weights off the accelerator: none, model, sequential or group.",
        autocompletion=complete_from(OFFLOADS),
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the method; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]


def specs_of(methods: str, speedup: float | None, site: str | None, option: list[str] | None) -> tuple[MethodSpec, ...]:
    """The methods to compare, checked as far as they can be before a model is there."""
    specs = parse_methods(methods, {**shared_options(speedup, site), **parse_options(option or ())})
    for spec in specs:
        spec.check(None)
    return specs


def shared_options(speedup: float | None, site: str | None) -> dict[str, Any]:
    return {name: value for name, value in (("speedup", speedup), ("site", site)) if value is not None}


def names_of(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` → names; None where nothing was asked for."""
    return tuple(name.strip() for name in text.split(",")) if text else None
