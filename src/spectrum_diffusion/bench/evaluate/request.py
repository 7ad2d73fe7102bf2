"""What to evaluate: rows (methods with options) over cases (prompts and seeds)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidOptionError
from ...methods import make_method
from ..prompts import Prompt

REFERENCE = "reference"
"""Label of the untouched pipeline."""
CLIP_SCORE = "clip_score"


@dataclass(frozen=True)
class Row:
    """A method with its options, as :func:`spectrum_diffusion.enable` takes them; ``label`` is its name in tables."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    plan: str | None = None

    def __post_init__(self) -> None:
        if self.plan is None:
            make_method(self.method, **self.options)
        if not self.label:
            shown = ",".join(f"{name}={value}" for name, value in self.options.items())
            object.__setattr__(self, "label", f"{self.method}:{shown}" if shown else self.method)


@dataclass(frozen=True)
class Case:
    """One prompt with one seed."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, whatever the pipeline.

    Attributes:
        model: name of the pipeline, for the reader. Keys use the pipeline itself.
        rows: the methods. The untouched pipeline always runs and is not a row.
        prompts: texts with their categories; duplicate texts count once.
        seeds: each prompt runs with each seed.
        call: arguments of the pipeline's call other than prompt and seed, JSON-ready.
        metrics: names in ``METRICS``, ``clip_score``, and names in ``PROGRAMS``. Default: every available metric of
            ``METRICS``, and ``clip_score`` if its model is available.
        clip: the folder of a CLIP model, or its id on the Hub; default: that of ``ClipScore``.
        baseline: label of the row that the others are compared with; default: the first fewer-steps row, if any.
        path: also keep the latents and compare them step by step.
        flops: also count the operations of each row's first case, which takes one more call per row.
        command: the command line, for the manifest.

    Raises:
        InvalidOptionError: there is nothing to evaluate, or a name is unknown.
    """

    model: str
    rows: tuple[Row, ...]
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...] = (0,)
    call: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    clip: str | None = None
    baseline: str | None = None
    path: bool = False
    flops: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        for name, values in (("rows", self.rows), ("prompts", self.prompts), ("seeds", self.seeds)):
            if not values:
                raise InvalidOptionError(f"{name} is empty, so there is nothing to evaluate: give one or more")
        if len(set(labels)) < len(labels) or REFERENCE in labels:
            raise InvalidOptionError(
                f"rows have the labels {labels}: give each its own label, other than {REFERENCE!r}"
            )
        if self.baseline is not None and self.baseline not in labels:
            raise InvalidOptionError(
                f"baseline={self.baseline!r} is not the label of a row: choose one of {', '.join(labels)}"
            )
        if self.clip is not None and self.metrics is not None and CLIP_SCORE not in self.metrics:
            raise InvalidOptionError(
                f"clip={self.clip!r} has no effect without the metric {CLIP_SCORE!r}: add it to metrics"
            )

    @property
    def cases(self) -> list[Case]:
        texts = {prompt.text: prompt for prompt in reversed(self.prompts)}  # of duplicates, the first category wins
        prompts = list(dict.fromkeys(prompt.text for prompt in self.prompts))
        return [Case(texts[text], seed) for text in prompts for seed in dict.fromkeys(self.seeds)]

    def find_baseline(self) -> str | None:
        """The label of the row that the others are compared with."""
        fewer = (row.label for row in self.rows if row.method == "fewer-steps")
        return self.baseline or next(fewer, None)
