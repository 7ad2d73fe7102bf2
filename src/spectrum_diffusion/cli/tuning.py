"""The command ``spectrum tune``: calibrate a method on a model, and write plans."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import outputs, pipelines
from .guard import MistakeError, sampling_failures
from .request import MethodSpec, Request

if TYPE_CHECKING:
    from ..plan import Plan


def parse_counts(text: str) -> list[int]:
    """``14,10`` → the wanted evaluations, each once."""
    if not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", text):
        raise MistakeError(f"--nfe {text!r} is not a list of positive integers: write 14, or 14,10")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def paths(output: Path, counts: list[int]) -> list[Path]:
    """Where each plan goes: several counts give plan-14.json, plan-10.json."""
    if len(counts) == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{count}{output.suffix}") for count in counts]


def tune(
    request: Request, spec: MethodSpec, counts: list[int], output: Path, on_run: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Find the plans and write them; what became of each.

    Raises:
        SpectrumError: the method can't be tuned, or not to the wanted evaluations.
        FailureError: the pipeline failed.
    """
    from ..bench.images import with_image
    from ..tune import tune as tuned

    pipe = pipelines.load(request)
    with sampling_failures(pipe):
        plans = tuned(
            pipe,
            spec.name,
            request.prompts,
            nfe=counts,
            seeds=request.seeds,
            call=with_image(pipe, request.call_options()),
            on_run=on_run,
            **spec.options,
        )
    return [_write(plan, path, request) for plan, path in zip(plans, paths(output, counts), strict=True)]


def _write(plan: Plan, path: Path, request: Request) -> dict[str, Any]:
    values = plan.to_dict()
    made = {"command": shlex.join(["spectrum", *sys.argv[1:]]), "pipeline": request.model}
    values["provenance"] = {**made, **values["provenance"], "call": request.call_options()}
    outputs.save_json(path, values)
    return {"output": str(path), **values}
