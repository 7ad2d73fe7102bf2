"""The command `spectrum demo` before its page opens."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from spectrum_diffusion import demo
from spectrum_diffusion.cli.app import app
from spectrum_diffusion.errors import MissingPackageError


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code != 0
    assert isinstance(result.exception, MissingPackageError) or "spectrum-diffusion[demo]" in result.output


def test_the_page_is_on_this_machine_unless_told_otherwise() -> None:
    (command,) = [command for command in app.registered_commands if command.callback.__name__ == "demo"]  # type: ignore[union-attr]
    assert command.callback.__defaults__[1] == "127.0.0.1"  # type: ignore[union-attr,index]


def test_the_package_is_looked_for_under_its_name() -> None:
    if importlib.util.find_spec("gradio") is None:
        with pytest.raises(MissingPackageError, match=r"pip install 'spectrum-diffusion\[demo\]'"):
            demo.check_packages()
    else:
        demo.check_packages()
