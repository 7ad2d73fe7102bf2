"""Options that several commands share, and how they are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .completion import complete_from, complete_methods, complete_model
from .guard import MistakeError
from .request import DTYPES, OFFLOADS, MethodSpec, join_options, parse_methods, parse_options

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="Texts to sample; one or more.")]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="LIST|FILE|-",
        help="tiny, drawbench, coco, vbench, a .txt, .csv, .tsv, .json or .jsonl file, or - for stdin.",
    ),
]
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
Speedup = Annotated[float | None, typer.Option(help="Steps divided by evaluated steps. (default: the method's)")]
Site = Annotated[str | None, typer.Option(help="Where features are kept: last_block, output or module.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps. (default: the pipeline's)")]
Seed = Annotated[int, typer.Option(help="Seed of the noise, the same for every prompt.")]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,…", help="Several seeds, instead of --seed.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. (default: the pipeline's)")]
Size = Annotated[str | None, typer.Option(metavar="N|WxH", help="Size in pixels. (default: the pipeline's)")]
Frames = Annotated[int | None, typer.Option(help="Frames of a video. (default: the pipeline's)")]
Device = Annotated[str | None, typer.Option(help="cuda, mps, cpu … (default: the best of this machine)")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, float16 or bfloat16. (default: bfloat16 on an accelerator, else float32)",
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
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the method; repeat for more."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]


def specs_of(methods: str, speedup: float | None, site: str | None, option: list[str] | None) -> tuple[MethodSpec, ...]:
    """The methods to compare, checked as far as they can be before a model is loaded.

    An adaptive method has no speed-up to set: a shared ``--speedup`` leaves it out, and says so.

    Raises:
        MistakeError: no method is left.
    """
    shared = join_options(shared_options(speedup, site), parse_options(option or ()))
    specs = parse_methods(methods, shared)
    kept = [spec for spec in specs if "speedup" not in shared or spec.takes("speedup")]
    for spec in specs:
        if spec not in kept:
            typer.echo(
                f"{spec.name} decides at run time and has no speedup: left out. Find its threshold with "
                f"`spectrum tune --method {spec.name}` and give the plan without --speedup.",
                err=True,
            )
    if not kept:
        raise MistakeError(f"--speedup fits none of the methods {methods!r}: leave it out, or name another method")
    for spec in kept:
        spec.check(None)
    return tuple(kept)


def shared_options(speedup: float | None, site: str | None) -> dict[str, Any]:
    return {name: value for name, value in (("speedup", speedup), ("site", site)) if value is not None}


def names_of(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` → names; None if there is no list."""
    return tuple(name.strip() for name in text.split(",")) if text else None
