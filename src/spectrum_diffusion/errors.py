"""The errors of the library: one root, and what went wrong in the name."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path


class SpectrumError(Exception):
    """Root of every error that the library raises on purpose."""


class InvalidOptionError(SpectrumError, ValueError):
    """A value that can't be: the message says what was given, why it can't be, and what to do."""


class UnsupportedModelError(SpectrumError, ValueError):
    """A denoiser without a row in the table, or without the wanted site; the message names the way out."""


class ConflictError(SpectrumError, RuntimeError):
    """Something else already caches, patches or uses the model; the message names it and how to remove it."""


class MissingPackageError(SpectrumError, ImportError):
    """Something optional is not here: a package, or a model's weights; the message says how to get it."""


class ProgramError(SpectrumError, RuntimeError):
    """Another program that was run for a metric failed; the message says which, and what it said last."""


class SpectrumWarning(UserWarning):
    """Said once: the result is right, but not what was hoped for (nothing to skip, a stochastic scheduler …)."""


def warn(message: str) -> None:
    """Warn from the line of the user's that led here: outside of this package, of contextlib, torch and diffusers."""
    inside = (str(Path(__file__).parent), contextlib.__file__, "torch", "diffusers")
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename, inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, SpectrumWarning, stacklevel=level)


def _is_inside(filename: str, inside: tuple[str, ...]) -> bool:
    package, library, *names = inside
    return filename.startswith(package) or filename == library or any(f"/{name}/" in filename for name in names)
