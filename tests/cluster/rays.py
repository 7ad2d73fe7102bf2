"""Processes of a local Ray cluster, which can be killed."""

from __future__ import annotations

import subprocess
from pathlib import Path

RAY = ("--ray", "local", "--actors", "2")


def children(pid: int) -> dict[int, str]:
    """The processes below a process, and their command lines."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found: dict[int, str] = {}
    parents = {pid}
    table = [
        (int(row.split(None, 2)[0]), int(row.split(None, 2)[1]), row.split(None, 2)[2]) for row in rows.splitlines()
    ]
    while fresh := {child: line for child, parent, line in table if parent in parents and child not in found}:
        found |= fresh
        parents |= fresh.keys()
    return found


def actors(pid: int) -> list[int]:
    return [child for child, line in children(pid).items() if line.startswith("ray::MapWorker")]


def has_ended(below: dict[int, str]) -> bool:
    """Whether the node of a cluster is gone, which ends its actors."""
    return not any(Path(f"/proc/{pid}").exists() and "raylet" in line for pid, line in below.items())
