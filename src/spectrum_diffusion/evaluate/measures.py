"""Metrics of kept frames against the kept reference, each computed once."""

from __future__ import annotations

import math
from importlib import metadata
from typing import Any

from ..errors import InvalidOptionError, SpectrumError
from ..metrics import METRICS, Metric
from .identity import code_of_module, key_of
from .plan import Unit
from .store import Store


def choose_metrics(names: tuple[str, ...] | None) -> dict[str, Metric]:
    """The metrics of those names; without names, all that can be had here.

    Raises:
        InvalidOptionError: an unknown name, or one that can't be had here.
    """
    if names is None:
        return {name: metric for name, metric in METRICS.items() if not metric.available()}
    for name in names:
        if name not in METRICS:
            raise InvalidOptionError(f"metric {name!r} is unknown: choose among {', '.join(METRICS)}")
        if problem := METRICS[name].available():
            raise InvalidOptionError(f"metric {name!r} can't be had here: {problem}")
    return {name: METRICS[name] for name in names}


def measure(store: Store, unit: Unit, reference: Unit, metrics: dict[str, Metric]) -> None:
    """Compute what is missing of a finished unit's metrics, and keep it."""
    found = store.metrics(unit)
    keys = {name: _key(metric, unit, reference) for name, metric in metrics.items()}
    missing = [name for name, key in keys.items() if found.get(name, {}).get("key") != key]
    record, whole = store.record(unit), store.record(reference)
    if not missing or record is None or whole is None:
        return
    frames, untouched = store.frames(unit, record), store.frames(reference, whole)
    for name in missing:
        found[name] = {"key": keys[name], **_compare(metrics[name], frames, untouched)}
    store.save_metrics(unit, found)


def read_metrics(store: Store, unit: Unit, reference: Unit, metrics: dict[str, Metric]) -> dict[str, dict[str, Any]]:
    """The metrics of a unit that are up to date: ``value``, ``infinite`` or the ``problem``."""
    found = store.metrics(unit)
    keys = {name: _key(metric, unit, reference) for name, metric in metrics.items()}
    return {name: found[name] for name, key in keys.items() if found.get(name, {}).get("key") == key}


def _compare(metric: Metric, frames: Any, reference: Any) -> dict[str, Any]:
    """JSON-ready: an infinite value is null, and marked."""
    try:
        value = float(metric.compare(frames, reference))
    except SpectrumError as error:  # too small for it, or of another shape
        return {"value": None, "problem": str(error)}
    if math.isfinite(value):
        return {"value": value}
    return {"value": None, "infinite": True} if math.isinf(value) else {"value": None, "problem": "not a number"}


def _key(metric: Metric, unit: Unit, reference: Unit) -> str:
    module = metric.score.__module__
    return key_of(unit=unit.key, reference=reference.key, code=code_of_module(module), torchmetrics=_torchmetrics())


def _torchmetrics() -> str | None:
    try:
        return metadata.version("torchmetrics")
    except metadata.PackageNotFoundError:
        return None
