"""Plans the work: which units there are, and the key of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ...errors import SpectrumError
from ...keys import call_arguments, code_of, environment, fingerprint, key_of, plain
from ...methods import METHODS
from .request import REFERENCE, Case, Request, Row
from .sampling import probe

FORMAT = 4
"""Incremented when the measurements or keys of a unit change: older results are then computed again."""


@dataclass(frozen=True)
class Unit:
    """One call of the pipeline: a case with a row's method, or with the untouched pipeline if ``row`` is None.

    Attributes:
        key: SHA-256 of everything that determines the result.
        name: path within the folder without its suffix; it ends with the start of the key. Rows that differ only in
            their labels share units.
    """

    row: Row | None
    case: Case
    key: str
    name: str

    @property
    def label(self) -> str:
        return self.row.label if self.row else REFERENCE

    @property
    def method(self) -> str:
        return self.row.method if self.row else REFERENCE


@dataclass
class WorkPlan:
    """All units of a request on a pipeline.

    Attributes:
        references: a unit per case, in the order of the cases.
        units: label → a unit per case; a row that the pipeline does not support has none.
        flops: label → the unit whose operations are counted; empty if none are.
        options: label → the method's options on this pipeline.
        failures: label → why the row failed.
        problems: (label, metric) → why the metric could not be computed.
    """

    request: Request
    settings: dict[str, Any]
    references: list[Unit]
    units: dict[str, list[Unit]] = field(default_factory=dict)
    flops: dict[str, Unit] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    problems: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def cases(self) -> list[Case]:
        return [unit.case for unit in self.references]

    @property
    def every(self) -> list[Unit]:
        """References and units, row by row."""
        return [unit for units in self.by_label.values() for unit in units]

    @property
    def distinct(self) -> dict[str, Unit]:
        """All work by name: rows may share units."""
        return {unit.name: unit for unit in (*self.every, *self.flops.values())}

    def of_case(self, index: int) -> dict[str, Unit]:
        """All work on a case by name."""
        reference = self.references[index]
        counted = (unit for unit in self.flops.values() if unit.case == reference.case)
        return {unit.name: unit for unit in (*(units[index] for units in self.by_label.values()), *counted)}

    @property
    def by_label(self) -> dict[str, list[Unit]]:
        """The units of every supported row, the reference first."""
        return {REFERENCE: self.references, **self.units}


def make_work_plan(pipe: Any, request: Request) -> WorkPlan:
    """The work of a request. It enables each method once to find out whether the pipeline supports it."""
    settings, cases = settings_of(pipe, request), request.cases
    plan = WorkPlan(request, settings, [_unit(settings, None, case) for case in cases])
    if request.flops:
        plan.flops[REFERENCE] = _counted(settings, None, cases[0])
    for row in request.rows:
        try:
            plan.options[row.label] = options = probe(pipe, row)
        except SpectrumError as error:
            plan.failures[row.label] = str(error)
            continue
        cls = METHODS[row.method]
        own = {**settings, "method": row.method, "options": options, "code": code_of(cls), "package": cls.version()}
        plan.units[row.label] = [_unit(own, row, case) for case in cases]
        if request.flops:
            plan.flops[row.label] = _counted(own, row, cases[0])
    return plan


def settings_of(pipe: Any, request: Request) -> dict[str, Any]:
    """The part of every key that all units share."""
    return {
        "format": FORMAT,
        "pipeline": fingerprint(pipe),
        "call": plain(call_arguments(pipe, request.call)),  # contents are read once, not for the key of each unit
        "environment": environment(pipe),
        "path": request.path,
    }


def _counted(settings: dict[str, Any], row: Row | None, case: Case) -> Unit:
    return _unit({**settings, "counted": "flops"}, row, case, folder="flops")


def _unit(settings: dict[str, Any], row: Row | None, case: Case, folder: str = "units") -> Unit:
    key = key_of(**settings, prompt=case.prompt.text, seed=case.seed)
    method = row.method if row else REFERENCE
    name = f"{folder}/{slug(method)}/{slug(case.prompt.text)}-s{case.seed}-{key[:16]}"
    return Unit(row, case, key, name)


def slug(text: str) -> str:
    """A readable file name for any file system."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).strip("-.")[:48] or "x"
