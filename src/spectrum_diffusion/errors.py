"""The errors of the library. Their names say what went wrong, and all derive from SpectrumError."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path


class SpectrumError(Exception):
    """Root of every error that the library raises on purpose."""


class InvalidOptionError(SpectrumError, ValueError):
    """An invalid value. The message says what was given, why it is wrong, and what to do."""


class UnsupportedModelError(SpectrumError, ValueError):
    """The method does not work on this model, e.g. because it lacks the method's site. The message says what does."""


class ConflictError(SpectrumError, RuntimeError):
    """Something else caches, patches or uses the model. The message names it and says how to remove it."""


class MissingPackageError(SpectrumError, ImportError):
    """An optional package or the weights of a model are missing. The message says how to get them."""


class ProgramError(SpectrumError, RuntimeError):
    """A program that computes a metric failed. The message names it and quotes its last output."""


class SpectrumWarning(UserWarning):
    """The result is right, but not what was hoped for: nothing to skip, a stochastic scheduler. Given once."""


def warn(message: str) -> None:
    """Warn at the user's line that led here, which is the innermost outside this package, torch and diffusers."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_internal(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SpectrumWarning, stacklevel=level)


def _is_internal(filename: str) -> bool:
    own = filename.startswith(str(Path(__file__).parent)) or filename == contextlib.__file__
    return own or "/torch/" in filename or "/diffusers/" in filename
