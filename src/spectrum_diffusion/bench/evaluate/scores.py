"""Metrics that other programs compute, row by row, over the kept files, after all generations.

A program with a value per file only runs over new files. A program with one value for all files runs over all of them
again when a file is added.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...atomic import StoreError
from ...errors import InvalidOptionError, MissingPackageError, SpectrumError
from ...keys import key_of
from ..metrics.programs import Entry, Program, write_manifest
from . import files
from .measures import code_key, keys_of
from .store import Store
from .units import Unit, WorkPlan, slug
from .work import OnUnit

SCORE = "score.json"


def run_programs(plan: WorkPlan, store: Store, programs: dict[str, Program], device: str, on_unit: OnUnit) -> None:
    """Run each program over each row with new files; failures are noted in the plan's problems."""
    if programs and torch.cuda.is_available():
        torch.cuda.empty_cache()  # leaves the memory to the programs
    total = len(plan.distinct)
    for program in programs.values():
        for label, units in plan.by_label.items():
            on_unit(total, total, f"{label}: {program.title}")
            try:
                _run(program, judged(program, units, store), store, device)
            except StoreError:
                raise
            except (SpectrumError, OSError) as error:  # OSError: the program can't be started
                plan.problems[label, program.name] = str(error)


def judged(program: Program, units: list[Unit], store: Store) -> list[Unit]:
    """The finished units that a program can judge."""
    return [
        unit
        for unit in units
        if program.category(unit.case.prompt.category) is not None and store.record(unit) is not None
    ]


def read_score(program: Program, units: list[Unit], store: Store) -> dict[str, Any]:
    """The ``value`` and ``parts`` of a program for all units together; empty if it did not run."""
    score = files.read_json(_folder(program, units, store) / SCORE) if units else None
    return score if score and score.get("key") == _key(program, units) else {}


def _run(program: Program, units: list[Unit], store: Store, device: str) -> None:
    new = _new(program, units, store)
    if not new:
        return
    folder = _folder(program, new, store)
    folder.mkdir(parents=True, exist_ok=True)
    listed = {_file(program, unit, store, folder): unit for unit in new}
    prompts = {file: unit.case.prompt for file, unit in listed.items()}
    entries = [Entry(file, prompt.text, program.category(prompt.category) or "") for file, prompt in prompts.items()]
    write_manifest(folder, entries)
    result = program.run(folder, device)
    if program.whole:
        files.write_json(folder / SCORE, {"key": _key(program, units), **asdict(result)})
        return
    for file, unit in listed.items():
        value = {"key": _unit_key(program, unit), "value": result.files[file]}
        store.save_metrics(unit, {**store.metrics(unit), program.name: value})


def _new(program: Program, units: list[Unit], store: Store) -> list[Unit]:
    """The units over which it must run."""
    if program.whole:
        return [] if read_score(program, units, store) else units
    return [unit for unit in units if store.metrics(unit).get(program.name, {}).get("key") != _unit_key(program, unit)]


def _file(program: Program, unit: Unit, store: Store, folder: Path) -> str:
    """The path of a unit's file from the folder of the manifest.

    Raises:
        InvalidOptionError: the pipeline generates images and the program judges videos, or the reverse.
        MissingPackageError: no installed package can write a video.
    """
    record = store.record(unit)
    assert record is not None  # it is finished
    path = store.playable(unit, record, program.suffix)
    if path is not None:
        return Path(os.path.relpath(path, folder)).as_posix()
    takes, makes = ("images", "videos") if program.suffix == ".png" else ("videos", "images")
    if (record["frames"] > 1) != (takes == "videos"):
        raise InvalidOptionError(f"{program.title} judges {takes}, these are {makes}: leave it out")
    raise MissingPackageError(
        f"{program.title} judges .mp4 files, which need imageio-ffmpeg: pip install 'spectrum-diffusion[video]'"
    )


def _folder(program: Program, units: list[Unit], store: Store) -> Path:
    return store.folder / "programs" / program.name / f"{slug(units[0].method)}-{_key(program, units)[:16]}"


def _key(program: Program, units: list[Unit]) -> str:
    """The key of all units together: their files, and the category of each."""
    listed = [(unit.key, program.category(unit.case.prompt.category)) for unit in units]
    return key_of(units=listed, **code_key(program))


def _unit_key(program: Program, unit: Unit) -> str:
    return keys_of({program.name: program}, unit, unit)[program.name]
