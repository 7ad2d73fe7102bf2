"""Turns the settings of a table into rows of an evaluation, and calibrates thresholds on the model, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import SpectrumError
from ...keys import code_of, code_of_modules, environment, fingerprint, key_of
from ...methods import METHODS
from ...plan import Plan, read_plan
from ...tune import tune_threshold
from ..evaluate import Row, files
from .paper import Setting

TOLERANCE = 0.5
"""How far the mean number of evaluations may be from the target."""


def make_rows(
    pipe: Any,
    settings: tuple[Setting, ...],
    prompts: tuple[str, ...],
    call: dict[str, Any],
    folder: Path,
    on_run: Callable[[str], None],
) -> tuple[tuple[Row, ...], dict[str, str]]:
    """The rows, and label → why a setting has none: the model does not support it, or no threshold reaches its target.

    Args:
        prompts: on which thresholds are calibrated.
        folder: keeps the calibrated plans for the next run.
        on_run: called after each generation of a calibration.
    """
    rows, problems = [], {}
    for setting in settings:
        try:
            options = _calibrated(pipe, setting, prompts, call, folder, on_run) if setting.tuned else setting.options
        except SpectrumError as error:
            problems[setting.label] = str(error)
            continue
        rows.append(Row(setting.method, dict(options), setting.label))
    return tuple(rows), problems


def _calibrated(
    pipe: Any,
    setting: Setting,
    prompts: tuple[str, ...],
    call: dict[str, Any],
    folder: Path,
    on_run: Callable[[str], None],
) -> dict[str, Any]:
    """The options, with the threshold that gives the target number of evaluations on average.

    Raises:
        SpectrumError: no threshold comes within half an evaluation of the target.
    """
    target = setting.tuned or 0
    path = folder / f"{setting.method}-{target}.json"
    key = key_of(
        pipeline=fingerprint(pipe),
        environment=environment(pipe),
        code=[code_of(METHODS[setting.method]), code_of_modules(tune_threshold.__module__)],
        options=dict(setting.options),
        prompts=prompts,
        call=call,
    )
    plan = _read_kept(path, key)
    if plan is None:
        (plan,) = tune_threshold(
            pipe, setting.method, prompts, nfe=[target], call=call, on_run=on_run, **setting.options
        )
        plan = replace(plan, record={**plan.record, "key": key})
        files.write_json(path, plan.to_dict())
    reached = float(plan.record["nfe"])
    if abs(reached - target) > TOLERANCE:
        raise SpectrumError(f"the threshold nearest to {target} evaluations gives {reached:g}")
    return dict(plan.options)


def _read_kept(path: Path, key: str) -> Plan | None:
    """The plan of an earlier run, if it was calibrated for the same key."""
    values = files.read_json(path)
    try:
        return read_plan(values) if values and values.get("key") == key else None
    except SpectrumError:  # written by another version
        return None
