"""Wording shared by messages and tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import SpectrumError


def did_you_mean(word: object, known: Iterable[str], similarity: float = 0.5) -> str:
    """`` (did you mean 'spectrum'?)``, or "" if nothing known is similar."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=similarity)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown_choice(given: str, value: object, choices: Iterable[str]) -> str:
    """The message about a value that is none of the choices.

    Args:
        given: the value as it was given, with its option: ``site='outptu'``.
    """
    known = list(choices)
    return f"{given} is unknown{did_you_mean(value, known)}: choose one of {', '.join(known)}"


SKIPPED_NOTHING = "evaluated every step, so the result is untouched"
"""What a warning says of a method that chooses its steps while it runs."""


def misfit(conditions: str) -> str:
    """The message about a plan whose weights are of no use under other conditions than it was made with."""
    return (
        f"the plan was made with {conditions}: its weights do not fit. Sample as the plan was made, or make another "
        "with `spectrum tune`"
    )


def first_line(error: BaseException) -> str:
    """The message of an exception on one line; libraries write paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why something failed, on one line: the messages of other libraries need the exception's name."""
    if isinstance(error, SpectrumError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def counted_name(number: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {what}{'s' * (number != 1)}"


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number in a cell of a table; a dash if there is none."""
    return "–" if value is None else f"{value:{form}}{unit}"


def mebibytes(count: float | None) -> float | None:
    """From bytes to MiB."""
    return None if count is None else count / 2**20
