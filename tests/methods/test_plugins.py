"""Methods of one's own at the command line: ``spectrum --import MODULE``, and entry points of installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEAN = """
from dataclasses import dataclass
from spectrum_diffusion import Method, register_method

@dataclass(frozen=True, kw_only=True)
class Mean(Method):
    "The mean of all features."
    interval: int = 3
    share: float = 1.0

    def weights(self, evaluated, target, total):
        return [self.share / len(evaluated)] * len(evaluated)
"""


def spectrum(*arguments: str, cwd: Path, code: int = 0, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [*([str(path)] if path else []), *(os.path.abspath(p) for p in sys.path if p)]
    done = subprocess.run(
        [sys.executable, "-c", "from spectrum_diffusion.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def names(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [method["name"] for method in json.loads(done.stdout)["methods"]]


def test_a_module_of_the_current_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MEAN + "register_method('mean', Mean)\n", encoding="utf-8")
    assert names(spectrum("--import", "mine", "methods", "--json", cwd=tmp_path))[-1] == "mean"
    arguments = ["generate", "red apple", "--method", "mean", "--option", "share=0.9", "--steps", "8", "--json"]
    done = spectrum("--import", "mine", *arguments, "--device", "cpu", "-o", "a.png", cwd=tmp_path)
    assert json.loads(done.stdout)["evaluated"] == [0, 1, 2, 3, 4, 7]
    done = spectrum(*arguments, "-o", "b.png", cwd=tmp_path, code=2)
    assert "method='mean' is unknown" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--import 'mine' failed (ModuleNotFoundError: No module named 'mine'): give a module of"),
        ("1 / 0", "--import 'mine' failed (ZeroDivisionError: division by zero)"),
        (
            "from spectrum_diffusion import register_method as r; r('x', dict)",
            "is not a subclass of spectrum_diffusion.",
        ),
    ],
    ids=["missing", "broken", "wrong"],
)
def test_modules_that_fail_are_one_message(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    done = spectrum("--import", "mine", "methods", cwd=tmp_path, code=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def install(folder: Path, entries: str) -> None:
    """A package as pip leaves it: a module, and metadata with entry points."""
    (folder / "other.py").write_text(MEAN, encoding="utf-8")
    metadata = folder / "other_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[spectrum_diffusion.methods]\n{entries}\n", encoding="utf-8")


def test_methods_of_installed_packages_are_there_by_themselves(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "other-mean = other:Mean\npaper = other:Mean")
    done = spectrum("methods", "--json", cwd=tmp_path, path=site)
    assert names(done).count("paper") == 1  # a name of ours is not replaced
    (plugin,) = (method for method in json.loads(done.stdout)["methods"] if method["name"] == "other-mean")
    assert plugin["options"]["share"] == 1.0
    arguments = ["--method", "other-mean", "--steps", "8", "--device", "cpu", "-o", "a.png", "--json"]
    done = spectrum("generate", "red apple", *arguments, cwd=tmp_path, path=site)
    assert json.loads(done.stdout)["method"] == "other-mean"


def test_a_broken_package_disturbs_no_other_method(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "gone = other:Missing\nwrong = other:dataclass")
    done = spectrum("methods", "--json", cwd=tmp_path, path=site)
    assert "spectrum" in names(done)
    assert {"gone", "wrong"}.isdisjoint(names(done))
    assert "cannot import method 'gone' of other-package from other:Missing: AttributeError" in done.stderr
    assert "other:dataclass of other-package is not a subclass of spectrum_diffusion.Method" in done.stderr
    done = spectrum("generate", "apple", "--method", "gone", "-o", "a.png", cwd=tmp_path, path=site, code=2)
    assert "Repair the package, or uninstall it" in done.stderr
