"""Plans: a method with options that were calibrated for one model, as JSON; what ``spectrum tune`` writes.

The keys "method", "options" and "model" say what to enable and on which denoiser; the others ("steps", "nfe",
"versions", "provenance" …) say what the plan is worth and how it was made, and are kept as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from .errors import InvalidOptionError

FORMAT = 1
PLAIN = "spectrum"
"""The default of ``enable``'s method, which a plan may replace."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method with options made for one model.

    Attributes:
        method: a name of ``METHODS``.
        options: the method's options.
        model: the denoiser, as :func:`denoisers.identity` names it; several are joined by " + ".
        record: what else there is to know: steps, evaluations, versions, provenance.
    """

    method: str
    options: Mapping[str, Any]
    model: str
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        what = {"format": FORMAT, "method": self.method, "options": dict(self.options), "model": self.model}
        return {**what, **self.record}

    def applied(self, method: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The method and options to enable: the plan's, with those that are given in their place.

        Raises:
            InvalidOptionError: another method is asked for.
        """
        if method not in (PLAIN, self.method):
            raise InvalidOptionError(
                f"method={method!r} disagrees with the plan, which is one of {self.method}: leave one of them out"
            )
        return self.method, {**self.options, **options}

    def check(self, denoiser: str) -> None:
        """Raise :class:`InvalidOptionError` for a denoiser that the plan was not made for."""
        if denoiser not in self.model.split(" + "):
            raise InvalidOptionError(
                f"the plan was made for {self.model}, and this denoiser is {denoiser}: make one for it with "
                f"`spectrum tune --method {self.method} --model … -o plan.json`"
            )


PlanLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Plan


def read_plan(given: PlanLike) -> Plan:
    """A plan from a file, a dict or a plan.

    Raises:
        InvalidOptionError: it can't be read, or is no plan.
    """
    if isinstance(given, Plan):
        return given
    named = "this dict" if isinstance(given, Mapping) else f"plan={str(given)!r}"
    values = given if isinstance(given, Mapping) else _read(given)
    kinds = {"method": str, "options": Mapping, "model": str}
    if not isinstance(values, Mapping) or any(not isinstance(values.get(key), kind) for key, kind in kinds.items()):
        raise InvalidOptionError(f"{named} is no plan: it needs the keys method, options and model of `spectrum tune`")
    if (version := values.get("format", FORMAT)) != FORMAT:
        raise InvalidOptionError(f"{named} has the format {version!r}, and this version reads {FORMAT}: make it anew")
    record = {key: value for key, value in values.items() if key not in (*kinds, "format")}
    return Plan(**{key: values[key] for key in kinds}, record=record)


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise InvalidOptionError(
            f"plan={str(path)!r} can't be read ({error}): give a file that `spectrum tune` wrote, or a dict"
        ) from None


def versions() -> dict[str, str]:
    """The versions that decide what a picture looks like."""
    return {name: metadata.version(name) for name in ("spectrum-diffusion", "torch", "diffusers", "transformers")}
