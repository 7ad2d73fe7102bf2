"""Metrics of kept frames against the kept reference or the prompt, each computed once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.words import did_you_mean
from ...errors import InvalidOptionError, MissingPackageError
from ..metrics import METRICS, ClipScore, Frames, Judge, PictureJudge, base, frames
from ..metrics.clip import CLIP_MODEL
from ..metrics.programs import PROGRAMS, Program
from .identity import code_of_modules, key_of
from .plan import Unit
from .request import CLIP_SCORE, REFERENCE, Request
from .store import Store


@dataclass(frozen=True)
class Metrics:
    """The metrics of an evaluation, by name.

    Attributes:
        pictures: computed here, of each picture when it is drawn.
        programs: run over the files of a row when all is drawn.
    """

    pictures: dict[str, PictureJudge]
    programs: dict[str, Program]

    @property
    def every(self) -> dict[str, Judge]:
        return {**self.pictures, **self.programs}


def judges(clip: str | None = None) -> dict[str, Judge]:
    """Every metric by name, whether it can be had here or not; with the CLIP model of ``clip_score``."""
    return {**_of_pictures(clip), **PROGRAMS}


def _of_pictures(clip: str | None) -> dict[str, PictureJudge]:
    return {**METRICS, CLIP_SCORE: ClipScore(clip or CLIP_MODEL)}


def choose_metrics(request: Request) -> Metrics:
    """The metrics that a request names; without names, all that can be had here and need no program.

    Raises:
        InvalidOptionError: an unknown name, or one that can't be had here.
    """
    pictures = _of_pictures(request.clip)
    asked = request.metrics
    if asked is None:
        given = (CLIP_SCORE,) if request.clip else ()  # then it must be had
        asked = tuple(name for name, judge in pictures.items() if name in given or not judge.available())
    check_metrics(asked, request.clip)
    return Metrics(
        {name: pictures[name] for name in asked if name in pictures},
        {name: PROGRAMS[name] for name in asked if name in PROGRAMS},
    )


def check_metrics(names: Iterable[str], clip: str | None = None) -> None:
    """Raise :class:`InvalidOptionError` for an unknown metric, or one that can't be had here."""
    known = judges(clip)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise InvalidOptionError(f"metric {name!r} is unknown{near}: choose among {', '.join(known)}")
        if problem := known[name].available():
            raise InvalidOptionError(f"metric {name!r} can't be had here: {problem}")


def measure(store: Store, unit: Unit, reference: Unit, metrics: Mapping[str, PictureJudge]) -> dict[str, str]:
    """Compute what is missing of a finished unit's metrics, and keep it.

    Returns:
        By name, why a metric can't be had after all: its model can't be loaded. That is not kept.
    """
    found = store.metrics(unit)
    keys = keys_of(metrics, unit, reference)
    missing = [name for name, key in keys.items() if found.get(name, {}).get("key") != key]
    record, whole = store.record(unit), store.record(reference)
    if not missing or record is None or whole is None:
        return {}
    frames = store.frames(unit, record)
    held = {"reference": store.frames(reference, whole), "prompt": unit.case.prompt.text}
    problems = {}
    for name in missing:
        try:
            found[name] = {"key": keys[name], **_judged(metrics[name], frames, held[metrics[name].against])}
        except MissingPackageError as error:
            problems[name] = str(error)
    store.save_metrics(unit, found)
    return problems


def read_metrics(store: Store, unit: Unit, reference: Unit, metrics: Mapping[str, Judge]) -> dict[str, dict[str, Any]]:
    """The metrics of a unit that are up to date: ``value``, ``infinite`` or the ``problem``."""
    found = store.metrics(unit)
    keys = keys_of(metrics, unit, reference)
    return {name: found[name] for name, key in keys.items() if found.get(name, {}).get("key") == key}


def keys_of(metrics: Mapping[str, Judge], unit: Unit, reference: Unit) -> dict[str, str]:
    """The keys of the metrics that a unit has."""
    judges = {name: judge for name, judge in metrics.items() if not judge.whole and applies(judge, unit.label)}
    return {name: _key(judge, unit, reference) for name, judge in judges.items()}


def applies(judge: Judge, label: str) -> bool:
    """Whether a row has that metric: the reference is not compared with itself."""
    return label != REFERENCE or judge.against != "reference"


def code_key(judge: Judge) -> dict[str, str]:
    """The code, versions and weights that a metric's values depend on, for their keys."""
    code = code_of_modules(judge.module, base.__name__, frames.__name__)
    return {"code": code, "metric": judge.fingerprint()}


def _judged(judge: PictureJudge, frames: Frames, against: Any) -> dict[str, Any]:
    """JSON-ready: an infinite value is null, and marked."""
    try:
        value = float(judge.judge(frames, against))
    except InvalidOptionError as error:  # too small for it, or of another shape
        return {"value": None, "problem": str(error)}
    if math.isfinite(value):
        return {"value": value}
    return {"value": None, "infinite": True} if math.isinf(value) else {"value": None, "problem": "not a number"}


def _key(judge: Judge, unit: Unit, reference: Unit) -> str:
    """The prompt is in the unit's own key."""
    held = reference.key if judge.against == "reference" else ""
    return key_of(unit=unit.key, reference=held, **code_key(judge))
