"""Runs a program over a folder, and reads its output."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....errors import MissingPackageError, ProgramError
from ..base import Judge
from .environment import last_lines, python_of
from .manifest import MANIFEST, Entry, read_manifest
from .quality import QUALITY, quality_dimensions, vbench_quality


@dataclass(frozen=True)
class ProgramResult:
    """The result of a program for a folder.

    Attributes:
        value: that of the whole folder.
        files: the value of each file, if the program gives one.
        parts: the values of its dimensions, if it has any.
    """

    value: float
    files: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Program(Judge):
    """A metric without a reference, computed by another program. Higher is better.

    Attributes:
        name, title: its key in ``PROGRAMS``, and its name in tables.
        environment: the name of its environment.
        parse: reads the file that its script writes, for the entries of the manifest.
        suffix: that of the files it takes: images or videos.
        category: maps a prompt's category to an entry's; None if the program does not judge such a prompt.
        whole: whether it gives one value for a folder and none for a file.
        arguments: further arguments of the script.
        variables: environment variables that its script reads.
        source: where it is published.
    """

    name: str
    title: str
    environment: str
    parse: Callable[[Path, list[Entry]], ProgramResult]
    suffix: str
    category: Callable[[str], str | None]
    whole: bool
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    source: str = field(default="", repr=False)
    higher_is_better = True

    def available(self) -> str:
        """Empty if its environment exists, else how to create it."""
        if python_of(self.environment).is_file():
            return ""
        command = f"python -m spectrum_diffusion.metrics.programs {self.environment}"
        return f"its environment does not exist: create it with {command}"

    def fingerprint(self) -> str:
        """A digest of its script, its pinned versions, the Quality Score's limits and the arguments."""
        given = [*self.arguments, *(os.environ.get(name, "") for name in self.variables)]
        parts = map(self._beside, (f"run_{self.environment}.py", f"{self.environment}.txt", "quality.py"))
        return hashlib.sha256(b"".join([*(path.read_bytes() for path in parts), repr(given).encode()])).hexdigest()

    def _beside(self, name: str) -> Path:
        return Path(__file__).with_name(name)

    def run(self, folder: Path, device: str = "cpu") -> ProgramResult:
        """Run it over the files of a folder's manifest; its output and log stay beside the manifest.

        Raises:
            InvalidOptionError: the folder has no valid manifest.
            MissingPackageError: the environment does not exist.
            ProgramError: the program failed, or its output is not valid.
        """
        entries = read_manifest(folder)
        if problem := self.available():
            raise MissingPackageError(f"{self.title} can't be computed: {problem}")
        output, log = folder / f"{self.name}.json", folder / f"{self.name}.log"
        output.unlink(missing_ok=True)
        script = self._beside(f"run_{self.environment}.py")
        command = [python_of(self.environment), script, folder / MANIFEST, output, device, *self.arguments]
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            said = last_lines(log.read_text(encoding="utf-8", errors="replace"))
            raise ProgramError(f"{self.title} failed with {done.returncode}, its output is in {log}: {said}")
        return self.parse(output, entries)


def parse_image_reward(path: Path, entries: list[Entry]) -> ProgramResult:
    """The mean over the files of ``{"scores": [{"file": …, "score": …}]}``.

    Raises:
        ProgramError: the file is not a result of ImageReward, lacks a file of the manifest, or a value is not finite.
    """
    try:
        scores = {str(entry["file"]): float(entry["score"]) for entry in _read(path)["scores"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ProgramError(f"{path} is not a result of ImageReward ({error!r}): run it again") from error
    if missing := [entry.file for entry in entries if not math.isfinite(scores.get(entry.file, math.nan))]:
        raise ProgramError(f"{path} has no value of {', '.join(missing[:5])}: run it again, its log says why")
    files = {entry.file: scores[entry.file] for entry in entries}
    return ProgramResult(math.fsum(files.values()) / len(files), files)


def parse_vbench(path: Path, entries: list[Entry]) -> ProgramResult:
    """The Quality Score of ``{dimension: [value, [{"video_path": …, "video_results": …}]]}``, as VBench writes it.

    Raises:
        ProgramError: the file is not a result of VBench, or lacks a video of the manifest.
        InvalidOptionError: a dimension of the Quality Score is missing or out of range.
    """
    try:
        dimensions = {str(name): (float(value), list(videos)) for name, (value, videos) in _read(path).items()}
        judged = {Path(video["video_path"]).name for _, videos in dimensions.values() for video in videos}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProgramError(f"{path} is not a result of VBench ({error!r}): run it again") from error
    if missing := [entry.file for entry in entries if Path(entry.file).name not in judged]:
        raise ProgramError(f"{path} has no value of {', '.join(missing[:5])}: run it again, its log says why")
    parts = {name: value for name, (value, _) in dimensions.items()}
    return ProgramResult(vbench_quality(parts), parts=parts)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProgramError(f"{path} can't be read ({error}): run the program again") from error


IMAGE_REWARD = Program(
    "image_reward",
    "ImageReward",
    "image_reward",
    parse_image_reward,
    suffix=".png",
    category=lambda category: "",
    whole=False,
    variables=("SPECTRUM_IMAGE_REWARD",),
    source="Xu et al.: ImageReward, 2023; ImageReward-v1.0",
)
VBENCH_QUALITY = Program(
    "vbench_quality",
    "VBench Quality",
    "vbench",
    parse_vbench,
    suffix=".mp4",
    category=quality_dimensions,
    whole=True,
    arguments=tuple(QUALITY),
    source="Huang et al.: VBench, 2024; the Quality Score of seven dimensions",
)

PROGRAMS: dict[str, Program] = {program.name: program for program in (IMAGE_REWARD, VBENCH_QUALITY)}
"""Metrics without a reference that run as other programs, by name."""
