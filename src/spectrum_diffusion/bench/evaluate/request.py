"""What is to be evaluated: rows (methods with options) over cases (prompts and seeds)."""

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
    """What is drawn: one prompt with one seed."""

    prompt: Prompt
    seed: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate, whatever the pipeline.

    Attributes:
        model: name of the pipeline, for the reader; what it is made of is looked up in the pipeline itself.
        rows: the methods; the untouched pipeline is no row, it is drawn for all of them.
        prompts: texts with their categories; a text that comes twice counts once.
        seeds: each prompt is drawn with each of them.
        call: arguments of the pipeline's call beside prompt and seed, JSON-ready.
        metrics: names in ``METRICS``, ``clip_score``, and names in ``PROGRAMS``. None for every one of ``METRICS`` that
            can be had here, and ``clip_score`` where there is a model for it.
        clip: the folder of a CLIP model, or its id on the Hub; None for that of ``ClipScore``.
        baseline: label of the row that the others are compared with; None for the first fewer-steps row, if any.
        path: also keep the latents along the way and compare them step by step.
        command: what was typed, for the manifest.

    Raises:
        InvalidOptionError: nothing to evaluate, or a name that is not known.
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
    command: str = ""

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        for name, values in (("rows", self.rows), ("prompts", self.prompts), ("seeds", self.seeds)):
            if not values:
                raise InvalidOptionError(f"there are no {name} to evaluate: give one or more")
        if len(set(labels)) < len(labels) or REFERENCE in labels:
            raise InvalidOptionError(f"rows {labels}: give each another label, and none {REFERENCE!r}")
        if self.baseline is not None and self.baseline not in labels:
            raise InvalidOptionError(f"baseline={self.baseline!r} is no row: choose one of {', '.join(labels)}")
        if self.clip is not None and self.metrics is not None and CLIP_SCORE not in self.metrics:
            raise InvalidOptionError(f"clip={self.clip!r} is for a metric that is not asked for: add {CLIP_SCORE!r}")

    @property
    def cases(self) -> list[Case]:
        texts = {prompt.text: prompt for prompt in reversed(self.prompts)}  # of two, the first one's category
        prompts = list(dict.fromkeys(prompt.text for prompt in self.prompts))
        return [Case(texts[text], seed) for text in prompts for seed in dict.fromkeys(self.seeds)]

    def find_baseline(self) -> str | None:
        """The label of the row that the others are compared with."""
        fewer = (row.label for row in self.rows if row.method == "fewer-steps")
        return self.baseline or next(fewer, None)
