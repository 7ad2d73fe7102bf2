"""Metrics of kept frames compared with the kept reference or the prompt, each computed once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.words import unknown_choice
from ...errors import InvalidOptionError, MissingPackageError
from ...keys import code_of_modules, key_of
from ..metrics import METRICS, ClipScore, Frames, Judge, PictureJudge, base, frames
from ..metrics.clip import CLIP_MODEL
from ..metrics.programs import PROGRAMS, Program
from .request import CLIP_SCORE, REFERENCE, Request
from .store import Store
from .units import Unit


@dataclass(frozen=True)
class Metrics:
    """The metrics of an evaluation, by name.

    Attributes:
        images: computed in this process, for each image after its generation.
        programs: run over the files of a row after all generations.
    """

    images: dict[str, PictureJudge]
    programs: dict[str, Program]

    @property
    def every(self) -> dict[str, Judge]:
        return {**self.images, **self.programs}


def judges(clip: str | None = None) -> dict[str, Judge]:
    """Every metric by name, available or not; with the CLIP model of ``clip_score``."""
    return {**_image_metrics(clip), **PROGRAMS}


def _image_metrics(clip: str | None) -> dict[str, PictureJudge]:
    return {**METRICS, CLIP_SCORE: ClipScore(clip or CLIP_MODEL)}


def choose_metrics(request: Request) -> Metrics:
    """The metrics that a request names; by default, all that are available and need no program.

    Raises:
        InvalidOptionError: a metric is unknown or not available.
    """
    images = _image_metrics(request.clip)
    names = request.metrics
    if names is None:
        required = (CLIP_SCORE,) if request.clip else ()
        names = tuple(name for name, judge in images.items() if name in required or not judge.available())
    check_metrics(names, request.clip)
    return Metrics(
        {name: images[name] for name in names if name in images},
        {name: PROGRAMS[name] for name in names if name in PROGRAMS},
    )


def check_metrics(names: Iterable[str], clip: str | None = None) -> None:
    """Raise :class:`InvalidOptionError` if a metric is unknown or not available."""
    known = judges(clip)
    for name in names:
        if name not in known:
            raise InvalidOptionError(unknown_choice(f"metric {name!r}", name, known))
        if problem := known[name].available():
            raise InvalidOptionError(f"metric {name!r} is not available: {problem}")


def unmeasured(store: Store, unit: Unit, reference: Unit, metrics: Mapping[str, PictureJudge]) -> list[str]:
    """The metrics that a unit lacks."""
    kept = store.metrics(unit)
    return [name for name, key in keys_of(metrics, unit, reference).items() if kept.get(name, {}).get("key") != key]


def measure_unit(store: Store, unit: Unit, reference: Unit, metrics: Mapping[str, PictureJudge]) -> dict[str, str]:
    """Compute and keep the missing metrics of a finished unit.

    Returns:
        Metric name → why its model could not be loaded. This is not kept.
    """
    missing = unmeasured(store, unit, reference, metrics)
    record, reference_record = store.record(unit), store.record(reference)
    if not missing or record is None or reference_record is None:
        return {}
    frames, reference_frames = (store.read_frames(store.frames_file(kept)) for kept in (record, reference_record))
    against = {"reference": reference_frames, "prompt": unit.case.prompt.text}
    kept, keys, problems = store.metrics(unit), keys_of(metrics, unit, reference), {}
    for name in missing:
        try:
            kept[name] = {"key": keys[name], **_judged(metrics[name], frames, against[metrics[name].against])}
        except MissingPackageError as error:
            problems[name] = str(error)
    store.save_metrics(unit, kept)
    return problems


def read_metrics(store: Store, unit: Unit, reference: Unit, metrics: Mapping[str, Judge]) -> dict[str, dict[str, Any]]:
    """The up-to-date metrics of a unit: ``value``, ``infinite`` or the ``problem``."""
    kept = store.metrics(unit)
    keys = keys_of(metrics, unit, reference)
    return {name: kept[name] for name, key in keys.items() if kept.get(name, {}).get("key") == key}


def keys_of(metrics: Mapping[str, Judge], unit: Unit, reference: Unit) -> dict[str, str]:
    """The keys of the metrics that a unit has."""
    judges = {name: judge for name, judge in metrics.items() if not judge.whole and applies(judge, unit.label)}
    return {name: _key(judge, unit, reference) for name, judge in judges.items()}


def applies(judge: Judge, label: str) -> bool:
    """Whether a row has the metric: the reference is not compared with itself."""
    return label != REFERENCE or judge.against != "reference"


def code_key(judge: Judge) -> dict[str, str]:
    """The code, versions and weights that a metric's values depend on, for their keys."""
    code = code_of_modules(judge.module, base.__name__, frames.__name__)
    return {"code": code, "metric": judge.fingerprint()}


def _judged(judge: PictureJudge, frames: Frames, against: Any) -> dict[str, Any]:
    """The value, ready for JSON: an infinite value is null and marked."""
    try:
        value = float(judge.judge(frames, against))
    except InvalidOptionError as error:  # the frames are too small, or their shapes differ
        return {"value": None, "problem": str(error)}
    if math.isfinite(value):
        return {"value": value}
    return {"value": None, "infinite": True} if math.isinf(value) else {"value": None, "problem": "not a number"}


def _key(judge: Judge, unit: Unit, reference: Unit) -> str:
    reference_key = reference.key if judge.against == "reference" else ""  # the prompt is part of the unit's key
    return key_of(unit=unit.key, reference=reference_key, **code_key(judge))
