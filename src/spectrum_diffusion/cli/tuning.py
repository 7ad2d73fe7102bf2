"""The command ``spectrum tune``: calibrate a method on a model, and write plans."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import written
from . import pipelines
from .guard import MistakeError, sampling_failures
from .request import MethodSpec, SamplingRequest

if TYPE_CHECKING:
    from ..plan import Plan


PLANNED = "spectrum"
"""The method whose plan has weights and a schedule."""


def parse_counts(text: str) -> list[int]:
    """``14,10`` → the wanted evaluations, each once."""
    if not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", text):
        raise MistakeError(f"--nfe {text!r} is not a list of positive integers: write 14, or 14,10")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def folder_of(output: Path) -> Path:
    """Where the work on a plan is kept, beside it."""
    return output.with_name(f"{output.stem}.tune")


def paths(output: Path, plans: Sequence[Plan]) -> list[Path]:
    """Where each plan goes: several give plan-14.json, plan-10.json."""
    if len(plans) == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{plan.record['wanted_nfe']}{output.suffix}") for plan in plans]


def shown(plan: dict[str, Any]) -> str:
    """A line about a plan that was written."""
    evaluated = f"{plan['nfe']:g} of {plan['steps']} steps evaluated"
    if "validation" not in plan:
        threshold = f"threshold {plan['options']['threshold']:g}: {evaluated}, {plan['wanted_nfe']} wanted"
        return f"{plan['output']}  {plan['method']} {threshold}"
    rows = {row["options"]: row for row in plan["validation"]["rows"]}
    default, chosen = rows["default"], rows[plan["chosen"]]
    reached = f"mean {chosen['mean']:.1f} dB, worst tenth {chosen['worst_tenth']:.1f} dB on held-out pairs"
    beside = f"default {default['mean']:.1f} and {default['worst_tenth']:.1f}"
    return f"{plan['output']}  {plan['method']}, {plan['chosen']}: {evaluated}; {reached} ({beside})"


SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_budget(text: str) -> float:
    """``90s``, ``10m`` or ``1h`` in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    if match is None or not float(match[1]):
        raise MistakeError(f"--budget {text!r} is not a time: write 90s, 10m or 1h")
    return float(match[1]) * SECONDS[match[2]]


def default_prompts(model: str) -> str | None:
    """The list of prompts of a small model; other models have none."""
    from ..loading import named_models

    return "tiny" if model in named_models() else None


def tune(
    request: SamplingRequest, spec: MethodSpec, wanted: dict[str, Any], output: Path, on_run: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Find the plans and write them; what became of each.

    Raises:
        SpectrumError: the method can't be tuned, or not to the wanted evaluations.
        FailureError: the pipeline failed.
    """
    from ..bench.images import with_image
    from ..tune import tune as tuned

    pipe = pipelines.load(request)
    if spec.name == PLANNED:
        wanted = {**wanted, "folder": folder_of(output)}
    with sampling_failures(pipe):
        plans = tuned(
            pipe,
            request.prompts,
            method=spec.name,
            **wanted,
            seeds=request.seeds,
            call=with_image(pipe, request.call_options()),
            on_run=on_run,
            **spec.options,
        )
    return [_write(plan, path, request) for plan, path in zip(plans, paths(output, plans), strict=True)]


def _write(plan: Plan, path: Path, request: SamplingRequest) -> dict[str, Any]:
    origin = {"command": shlex.join(["spectrum", *sys.argv[1:]]), "pipeline": request.model}
    provenance = {**origin, **plan.record["provenance"], "call": request.call_options()}
    with written(path) as temporary:
        temporary.write_text(plan.to_json(provenance=provenance), encoding="utf-8")
    return {"output": str(path), **plan.to_dict(), "provenance": provenance}
