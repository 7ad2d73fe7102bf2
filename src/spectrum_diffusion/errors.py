"""The errors of the library: one root, and what went wrong in the name."""

from __future__ import annotations


class SpectrumError(Exception):
    """Root of every error that the library raises on purpose."""


class InvalidOptionError(SpectrumError, ValueError):
    """A value that can't be: the message says what was given, why it can't be, and what to do."""


class UnsupportedModelError(SpectrumError, ValueError):
    """A denoiser without a row in the table, or without the wanted site; the message names the way out."""


class ConflictError(SpectrumError, RuntimeError):
    """Something else already caches, patches or uses the model; the message names it and how to remove it."""


class SpectrumWarning(UserWarning):
    """Said once: the result is right, but not what was hoped for (nothing to skip, a stochastic scheduler …)."""
