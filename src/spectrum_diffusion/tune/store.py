"""What a calibration keeps in a folder, so that the same command goes on where it was stopped.

Every file's name holds a digest of all that its content depends on, so that nothing of another calibration is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..atomic import written
from ..keys import key_of


class Store:
    """Results by their key, in a folder; without a folder nothing is kept.

    Args:
        folder: where files go; it is created.
        identity: what every result depends on, for :func:`key_of`.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)

    def tensors(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A dict of tensors and plain values: read, or made and kept. What was kept stays on the disk until used."""
        path = self._path(name, key, ".pt")
        if path is None:
            return make()
        if (kept := _loaded(path)) is None:
            made = make()
            # Through a file of Python's own, whose errors say that the disk is full.
            with written(path) as temporary, temporary.open("wb") as file:
                torch.save(made, file)
            kept = _loaded(path)
            assert kept is not None
        return kept

    def costs(self, name: str, key: Mapping[str, Any]) -> Costs:
        """The costs of schedules that were tried."""
        return Costs(self._path(name, key, ".json"))

    def _path(self, name: str, key: Mapping[str, Any], suffix: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{name}-{key_of(**self.identity, **key)[:16]}{suffix}"


class Costs:
    """Costs of schedules, in a file that is replaced after each new one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, float] = {}
        if path is not None and path.is_file():
            try:
                self._known = {str(name): float(cost) for name, cost in json.loads(path.read_bytes()).items()}
            except (ValueError, TypeError, AttributeError):
                self._known = {}  # it is made again

    def of(self, schedule: tuple[int, ...], cost: Callable[[tuple[int, ...]], float]) -> float:
        name = ",".join(map(str, schedule))
        if name not in self._known:
            self._known[name] = cost(schedule)
            if self._path is not None:
                with written(self._path) as temporary:
                    temporary.write_text(json.dumps(self._known, indent=0), encoding="utf-8")
        return self._known[name]


def _loaded(path: Path) -> dict[str, Any] | None:
    """What a file holds; None if there is none, or it is broken."""
    try:
        values = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception:  # of many kinds: a file of another version, cut off, or not there
        return None
    return values if isinstance(values, dict) else None
