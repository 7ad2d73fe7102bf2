"""Ctrl-C in the command ``spectrum``: one message and exit code 130, from the first import on."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130
"""What a shell reports for a process that SIGINT ended."""

_noticed: list[int] = []
_said: list[str] = []


def notice_interrupts() -> None:
    """Remember each SIGINT: libraries that it reaches while they are imported turn it into any other exception."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _notice)


def was_interrupted() -> bool:
    """Whether the user has pressed Ctrl-C."""
    return bool(_noticed)


def was_said() -> bool:
    """Whether the user has been told so. Typer exits with the same code without a word."""
    return bool(_said)


def exit_interrupted(kept: str = "") -> NoReturn:
    """Say that the command was interrupted, and what of its work is ``kept``."""
    _said.append(kept)
    sys.stderr.write(f"Interrupted. {kept}".strip() + "\n")
    sys.exit(EXIT_CODE)


def _notice(number: int, frame: FrameType | None) -> NoReturn:
    _noticed.append(number)
    raise KeyboardInterrupt
