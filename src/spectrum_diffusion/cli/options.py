"""Options that several commands share, and how they are read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cluster import Cluster
from .completion import complete_from, complete_method, complete_methods, complete_model
from .guard import MistakeError
from .request import (
    DEFAULT_MODEL,
    DTYPES,
    OFFLOADS,
    MethodSpec,
    SamplingRequest,
    join_options,
    parse_methods,
    parse_options,
    parse_size,
)

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="One or more texts to sample.")]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="LIST|FILE|-",
        help="tiny, drawbench, coco, vbench, a .txt, .csv, .tsv, .json, .jsonl or .parquet file, or - for stdin.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="Folder of a diffusers pipeline, id on the Hub, or name of a small model.", autocompletion=complete_model
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        help="Methods and plans: paper,plan:FILE; options follow a colon: paper:degree=3,ridge=1.",
        autocompletion=complete_methods,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Name of the method, see `spectrum methods`. (default: spectrum)", autocompletion=complete_method
    ),
]
PlanFile = Annotated[Path | None, typer.Option(help="A plan of `spectrum tune`: its method and options.")]
Speedup = Annotated[float | None, typer.Option(help="Steps divided by evaluated steps. (default: the method's)")]
Site = Annotated[str | None, typer.Option(help="Where features are kept: last_block, output or module.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps. (default: the pipeline's)")]
Seed = Annotated[int, typer.Option(help="Seed of the noise, the same for every prompt.")]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,…", help="Several seeds, in place of --seed.")]
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
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the method; may be repeated."),
]
NegativePrompt = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What not to show; needs guidance above 1. (default: none)")
]
ImageFile = Annotated[
    str | None, typer.Option("--image", metavar="FILE", help="Image to start from (image-to-image), or to edit.")
]
Strength = Annotated[
    float | None, typer.Option(help="Share of the steps that change --image, up to 1. (default: the pipeline's)")
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH|ID[:SCALE]", help="LoRA to load, with its scale; may be repeated."),
]
CallOptions = Annotated[
    list[str] | None,
    typer.Option("--call", metavar="KEY=VALUE", help="Any other argument of the pipeline's call; may be repeated."),
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS|auto|local", help="Work on the actors of a Ray cluster. (default: here)"),
]
Actors = Annotated[int | None, typer.Option(min=1, help="Pipelines on the cluster. (default: one a GPU)")]
ActorGpus = Annotated[float | None, typer.Option(min=0, help="GPUs of a pipeline, such as 1 or 0.5.")]
ActorCpus = Annotated[float | None, typer.Option(min=0, help="CPUs of a pipeline, such as 4 or 0.5.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and everything else on stderr.")]


@dataclass(frozen=True)
class Sampling:
    """The options of every command that samples: the model, and what it is called with."""

    model: Model = DEFAULT_MODEL
    steps: Steps = None
    guidance: Guidance = None
    size: Size = None
    frames: Frames = None
    device: Device = None
    dtype: Dtype = None
    offload: Offload = "none"
    negative_prompt: NegativePrompt = None
    image: ImageFile = None
    strength: Strength = None
    lora: Loras = None
    call: CallOptions = None

    def request(self, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> SamplingRequest:
        """The request with these options.

        Raises:
            MistakeError: a value that no pipeline can take.
        """
        read = {
            "size": parse_size(self.size),
            "lora": tuple(self.lora or ()),
            "call": parse_options(self.call or (), "--call"),
        }
        return SamplingRequest(prompts=prompts, seeds=seeds, **{**vars(self), **read})


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Sampling`, in place of its parameter ``sampling``."""
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(Sampling, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        sampling = Sampling(**{name: given.pop(name) for name in shared})
        command(**given, sampling=sampling)

    parameters = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        for option in (shared.values() if parameter.name == "sampling" else (parameter,))
    ]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in parameters}
    return run


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


def cluster_of(ray: str | None, actors: int | None, gpus: float | None, cpus: float | None) -> Cluster | None:
    """The cluster that was asked for, if any.

    Raises:
        MistakeError: options of actors without a cluster.
    """
    given = {"--actors": actors, "--actor-gpus": gpus, "--actor-cpus": cpus}
    if ray is not None:
        return Cluster(ray, actors, gpus, cpus)
    for option, value in given.items():
        if value is not None:
            raise MistakeError(f"{option} {value:g} is for the actors of a cluster: add --ray, or leave it out")
    return None


def names_of(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` → names; None if there is no list."""
    return tuple(name.strip() for name in text.split(",")) if text else None
