"""Read files that strangers may have written: bounded in size and depth, with finite numbers, and never executed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LARGEST = 8 << 20
"""Bytes of the largest file that is read as a plan or as a model's settings."""


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a regular file of at most ``most`` bytes.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is a device or pipe, which may never end, or too large, or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data.decode("utf-8")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON or nested too deeply, a number is not finite, or a text is not valid Unicode.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\ud" in text.lower():  # half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
