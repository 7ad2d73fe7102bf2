"""From the settings of a table to rows of an evaluation: thresholds are found for the model, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import SpectrumError
from ...methods import METHODS
from ...plan import Plan, read_plan
from ...tune import tune
from ..evaluate import Row, files
from ..evaluate.identity import code_of, code_of_modules, environment, fingerprint, key_of
from .paper import Setting

CLOSE = 0.5
"""Evaluations by which the mean may miss the wanted number."""


def make_rows(
    pipe: Any,
    settings: tuple[Setting, ...],
    prompts: tuple[str, ...],
    call: dict[str, Any],
    folder: Path,
    on_run: Callable[[str], None],
) -> tuple[tuple[Row, ...], dict[str, str]]:
    """The rows, and by label why a setting has none: no threshold gives so few evaluations, or the model can't have it.

    Args:
        prompts: by which thresholds are found.
        folder: where what was found is kept, for the next time.
        on_run: called after each picture that is drawn for it.
    """
    rows, problems = [], {}
    for setting in settings:
        try:
            options = _tuned(pipe, setting, prompts, call, folder, on_run) if setting.tuned else setting.options
        except SpectrumError as error:
            problems[setting.label] = str(error)
            continue
        rows.append(Row(setting.method, dict(options), setting.label))
    return tuple(rows), problems


def _tuned(
    pipe: Any,
    setting: Setting,
    prompts: tuple[str, ...],
    call: dict[str, Any],
    folder: Path,
    on_run: Callable[[str], None],
) -> dict[str, Any]:
    """The options with the threshold that gives the wanted evaluations on average.

    Raises:
        SpectrumError: no threshold comes within half an evaluation of them.
    """
    path = folder / f"{setting.method}-{setting.tuned}.json"
    key = key_of(
        pipeline=fingerprint(pipe),
        environment=environment(pipe),
        code=[code_of(METHODS[setting.method]), code_of_modules(tune.__module__)],
        options=dict(setting.options),
        prompts=prompts,
        call=call,
    )
    plan = _kept(path, key)
    if plan is None:
        (plan,) = tune(
            pipe, setting.method, prompts, nfe=[setting.tuned or 0], call=call, on_run=on_run, **setting.options
        )
        plan = replace(plan, record={**plan.record, "key": key})
        files.write_json(path, plan.to_dict())
    reached = float(plan.record["nfe"])
    if abs(reached - (setting.tuned or 0)) > CLOSE:
        raise SpectrumError(f"the threshold nearest to {setting.tuned} evaluations gives {reached:g}")
    return dict(plan.options)


def _kept(path: Path, key: str) -> Plan | None:
    """The plan that was found before, if it was found for the same."""
    values = files.read_json(path)
    try:
        return read_plan(values) if values and values.get("key") == key else None
    except SpectrumError:  # of another version
        return None
