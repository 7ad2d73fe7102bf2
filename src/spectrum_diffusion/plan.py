"""Plans: a method with options that ``spectrum tune`` calibrated for one model, as JSON.

The keys "method", "options" and "model" say what to enable and on which denoiser. "steps" is the number of steps of the
calibration. The other keys ("nfe", "versions", "provenance" …) record how the plan was made and what it reaches; they
are preserved.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from .conditions import Conditions
from .core.words import misfit
from .errors import InvalidOptionError
from .untrusted import LARGEST, parse_json, read_text

FORMAT = 2
KNOWN_FORMATS = (1, 2)
"""Format 2 added weights and the conditions that they were fitted under."""


class _NotGiven(str):
    """A default that reads like a method's name but is never identical to a name that was passed."""

    __slots__ = ()


DEFAULT_METHOD = _NotGiven("spectrum")
"""The default of ``enable``'s ``method``. A plan replaces it, but not a method that was passed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method with options that were calibrated for one model.

    Attributes:
        method: a name of ``METHODS``.
        options: the method's options.
        model: name of the denoiser by :func:`denoisers.identity`; several names are joined by " + ".
        record: everything else: steps, evaluations, versions, provenance.
    """

    method: str
    options: Mapping[str, Any]
    model: str
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        what = {"format": FORMAT, "method": self.method, "options": dict(self.options), "model": self.model}
        return {**what, **self.record}

    def to_json(self, **more: Any) -> str:
        """The plan as the text of a file, with ``more`` of its record; a row of numbers is a line."""
        text = json.dumps({**self.to_dict(), **more}, indent=2, ensure_ascii=False, allow_nan=False)
        numbers = r'\[\n[^\[\]{}"]*\]'  # no text holds a line break
        return (
            re.sub(numbers, lambda row: re.sub(r"\n\s*", " ", row[0]).replace("[ ", "[").replace(" ]", "]"), text)
            + "\n"
        )

    def applied(self, method: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The plan's method and options; ``options`` override its own.

        Raises:
            InvalidOptionError: ``method`` was passed and is not the plan's.
        """
        if method is not DEFAULT_METHOD and method != self.method:
            raise InvalidOptionError(
                f"method={method!r} contradicts the plan, which is for {self.method}: pass only one of them"
            )
        return self.method, {**self.options, **options}

    def check(self, denoiser: str) -> None:
        """Raise :class:`InvalidOptionError` if the plan was not made for a denoiser."""
        if denoiser not in self.model.split(" + "):
            raise InvalidOptionError(
                f"the plan was made for {self.model}, but this denoiser is {denoiser}: make a plan for it with "
                f"`spectrum tune --method {self.method} --model … -o plan.json`"
            )

    def begins(self, now: Conditions) -> list[str]:
        """Warnings about a loop under other conditions than the plan's.

        Raises:
            InvalidOptionError: the plan is of no use there.
        """
        if "conditions" not in self.record:
            return []
        planned = Conditions.read(self.record["conditions"])
        reasons, doubts = planned.contradictions(now), planned.other_size(now)
        (reasons if self._weighs_branches else doubts).extend(planned.other_guidance(now))
        if reasons:
            raise InvalidOptionError(misfit("; ".join(reasons)))
        return [
            f"the plan was made with {reason}: it may lose what it gains. `spectrum tune` makes a plan for this call"
            for reason in doubts
        ]

    @property
    def _weighs_branches(self) -> bool:
        """Whether the weights are those of guidance branches, so that they hold the strength of the guidance."""
        rows = self.options.get("step_weights") or [[]]
        return len(rows[0]) > 1

    def mismatch(self, total: int) -> str:
        """A warning if the plan was not made for ``total`` steps, or "".

        Raises:
            InvalidOptionError: it lists the evaluated steps of a run of other length.
        """
        steps = self.record.get("steps", total)
        if steps == total or "step_weights" in self.options:  # the method refuses weights for other steps
            return ""
        if "evaluated" in self.options:
            raise InvalidOptionError(misfit(f"{steps} steps, but this run has {total}"))
        return (
            f"the plan was made for {steps} steps, but this run has {total}: with its options {self.method} may skip "
            f"far too many of them and ruin the image. Run {steps} steps, or make a plan for {total} steps with "
            f"`spectrum tune --steps {total}`"
        )


PlanLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan


def read_plan(given: PlanLike) -> Plan:
    """The plan in a file or a dict.

    Raises:
        InvalidOptionError: the file cannot be read, or does not contain a plan.
    """
    if isinstance(given, Plan):
        return given
    named = "this dict" if isinstance(given, Mapping) else f"plan={str(given)!r}"
    values = given if isinstance(given, Mapping) else _read(given)
    kinds = {"method": str, "options": Mapping, "model": str}
    if not isinstance(values, Mapping) or any(not isinstance(values.get(key), kind) for key, kind in kinds.items()):
        raise InvalidOptionError(
            f"{named} is not a plan, which has the keys method, options and model: make one with `spectrum tune`"
        )
    if not all(isinstance(name, str) for name in (*values, *values["options"])):
        raise InvalidOptionError(f"{named} has a name that is not a string: write every key and option as text")
    if (version := values.get("format", FORMAT)) not in KNOWN_FORMATS:
        raise InvalidOptionError(
            f"{named} has format {version!r}, but this version reads the formats {KNOWN_FORMATS}: make the plan again"
        )
    record = {key: value for key, value in values.items() if key not in (*kinds, "format")}
    return Plan(**{key: values[key] for key in kinds}, record=record)


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        return parse_json(read_text(Path(path), LARGEST))
    except (OSError, TypeError, ValueError) as error:
        raise InvalidOptionError(
            f"plan={str(path)!r} cannot be read ({error}): pass a file that `spectrum tune` wrote, or a dict"
        ) from None


def versions() -> dict[str, str]:
    """Versions of the packages that determine an image."""
    return {name: metadata.version(name) for name in ("spectrum-diffusion", "torch", "diffusers", "transformers")}
