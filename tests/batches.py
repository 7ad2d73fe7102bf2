"""`spectrum generate` into a folder, in processes that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

SRC = str(Path(__file__).parents[1] / "src")
QUICK = ("--steps", "10", "--device", "cpu")
ENVIRONMENT = {**os.environ, "PYTHONPATH": SRC, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
PATIENCE = 400.0
"""Seconds that a process may take on a machine with much else to do."""


def prompt_file(folder: Path, count: int) -> Path:
    path = folder / "prompts.txt"
    path.write_text("".join(f"red apple {i}\n" for i in range(count)), encoding="utf-8")
    return path


def command(prompts: Path, out: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "spectrum_diffusion", "generate", "--prompts", str(prompts), "-o", str(out), "--json"),
        *QUICK,
        *arguments,
    ]


def start(line: list[str], **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen(line, **{**pipes, **options})


def finish(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The JSON object that a process prints."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    return dict(json.loads(out.splitlines()[-1]))


def files(out: Path) -> list[Path]:
    """The finished files, each of which is a whole image."""
    paths = sorted(path for path in out.glob("??/*.png") if not path.name.startswith("."))
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.size == (64, 64)
    return paths


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened, while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        assert process.poll() in (None, -9), process.communicate()[1]  # -9: a test killed it
        time.sleep(0.05)
