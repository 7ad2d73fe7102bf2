"""What to generate, under which names, and what of it exists already."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...atomic import TEMPORARY, remove, written
from ..evaluate.request import Row

MANIFEST = "manifest.jsonl"
KEY, SHARD, WORDS = 16, 2, 40
"""Characters of the key in a name, of the key in a folder, and of the prompt in a name."""
BLOCKS, BLOCK = 256, 4096
"""Blocks of a file of weights that a digest covers, and bytes of each."""
STALE = 3600.0
"""Seconds after which an unfinished file belongs to a process that is gone."""


@dataclass(frozen=True)
class Item:
    """One file to make: a prompt with a seed."""

    prompt: str
    seed: int
    file: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all items share. It is sent to other processes, so it holds no pipeline.

    Attributes:
        load: loads the pipeline.
        save: writes frames and their provenance to a path.
        provenance: what makes the same file again, from an item and what the method did.
        row: the method.
        call: arguments of the pipeline's call, JSON-ready.
        settings: everything that determines a file beside prompt and seed, JSON-ready; a key is made of it.
        folder: where the files go.
        suffix: of the files, such as ".png".
    """

    load: Callable[[], Any]
    save: Callable[[Path, Any, dict[str, Any]], None]
    provenance: Callable[[Item, Any], dict[str, Any]]
    row: Row
    call: Mapping[str, Any]
    settings: Mapping[str, Any]
    folder: Path
    suffix: str = ".png"


@dataclass(frozen=True)
class Plan:
    """The items of a job, each once, or the share of one process.

    Attributes:
        items: in the order of the prompts.
        done: the files of the folder, those of other jobs among them.
    """

    job: Job
    items: tuple[Item, ...]
    done: frozenset[str]

    @classmethod
    def of(cls, job: Job, prompts: Sequence[str], seeds: Sequence[int], rank: int = 0, world: int = 1) -> Plan:
        """Plan each prompt with each seed; repeated ones count once.

        Args:
            rank, world: number of this process, and of processes that share the job. All agree on who makes what,
                whatever exists already.
        """
        settings = json.dumps(job.settings, sort_keys=True)
        pairs = ((prompt, seed) for prompt in dict.fromkeys(prompts) for seed in dict.fromkeys(seeds))
        own = islice(pairs, rank, None, world)
        items = tuple(Item(prompt, seed, _file(settings, prompt, seed, job.suffix)) for prompt, seed in own)
        return cls(job, items, frozenset(_existing(job.folder)))

    @property
    def missing(self) -> list[Item]:
        """The items that have no file yet."""
        return [item for item in self.items if item.file not in self.done]

    @property
    def others(self) -> int:
        """The number of files that the folder has beside those of the plan."""
        return len(self.done - {item.file for item in self.items})

    def write_manifest(self) -> None:
        """Write which file is of which prompt and seed, a line each. It says the same whenever it is written."""
        with written(self.job.folder / MANIFEST) as temporary:
            with temporary.open("w", encoding="utf-8") as file:
                for item in self.items:
                    file.write(json.dumps(vars(item), ensure_ascii=False) + "\n")


def contents_digest(source: Path) -> str:
    """A digest of a file, or of a folder's files: other weights in the same place are another job.

    Of large files it covers the size and blocks that are spread evenly: a million prompts are planned in less time than
    34 GB are read. Hidden files do not count, since downloads keep notes in them.
    """
    digest = hashlib.sha256()
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    for path in files:
        name = path.relative_to(source).as_posix()
        if not name.startswith(".") or path == source:
            digest.update(json.dumps([name, path.stat().st_size]).encode())
            digest.update(_sampled(path))
    return digest.hexdigest()[:KEY]


def _sampled(path: Path) -> bytes:
    """A digest of blocks of a file; they cover a small one."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.digest()


def _file(settings: str, prompt: str, seed: int, suffix: str) -> str:
    key = hashlib.sha256(json.dumps([settings, prompt, seed]).encode()).hexdigest()[:KEY]
    words = re.sub(r"[^\w=-]+", "-", prompt).strip("-")[:WORDS].strip("-") or "x"
    return f"{key[:SHARD]}/{words}-{seed}-{key}{suffix}"


def _existing(folder: Path) -> Iterator[str]:
    """The files that are done. What killed processes left unfinished is removed on the way."""
    for shard in folder.glob("?" * SHARD):
        for entry in os.scandir(shard) if shard.is_dir() else ():
            if not TEMPORARY.fullmatch(entry.name):
                yield f"{shard.name}/{entry.name}"
            elif time.time() - entry.stat().st_mtime > STALE:
                remove(Path(entry.path))
