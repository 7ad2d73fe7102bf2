"""`spectrum serve` where the extra is missing, and the mistakes that it reports before it loads a model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from spectrum_diffusion import serve
from spectrum_diffusion.cli.app import app


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PACKAGES", ("json", "no_such_package"))
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "the server needs no-such-package" in result.stderr
    assert "pip install 'spectrum-diffusion[serve]'" in result.stderr
