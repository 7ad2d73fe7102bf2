"""Packages of the project's extras: tests that need one are skipped without it, or fail where extras are promised."""

from __future__ import annotations

import importlib
import os

import pytest

PROMISED = "SPECTRUM_EXTRAS"
"""Set to 1 by `make test-extras`: a package that is missing then is a failure."""


def needs(*modules: str) -> None:
    """Import modules of an extra, or skip the test module that calls this."""
    for module in modules:
        if os.environ.get(PROMISED) == "1":
            importlib.import_module(module)
        else:
            pytest.importorskip(module)
