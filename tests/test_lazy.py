"""Importing the package, and asking the command line for help, imports no heavy library."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

import spectrum_diffusion
from spectrum_diffusion.cli.completion import complete_from, complete_method, complete_methods, complete_model

HEAVY = ["torch", "diffusers", "transformers", "numpy", "PIL"]
SPECTRUM = "from spectrum_diffusion.cli import main; sys.argv[0] = 'spectrum'; main()"


def imported(code: str, *arguments: str, **environment: str) -> tuple[set[str], str]:
    """Which heavy libraries a fresh interpreter has imported at the end of ``code``, and what it printed."""
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([n for n in {HEAVY} if n in sys.modules]), file=sys.stderr))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


LIGHT = [
    "import spectrum_diffusion",
    "import spectrum_diffusion; dir(spectrum_diffusion)",
    "from spectrum_diffusion import METHODS; assert 'teacache' in list(METHODS)",
    "from spectrum_diffusion import schedule; schedule.for_speedup(50, 5)",
    "import spectrum_diffusion.interop; assert not [m for m in sys.modules if m.endswith(('_caches', 'cache_dit'))]",
    "from spectrum_diffusion.errors import SpectrumError",
    "from spectrum_diffusion.loading import small_models; small_models()",
    "import spectrum_diffusion.cli",
]


@pytest.mark.parametrize("code", LIGHT)
def test_what_needs_no_tensors_imports_no_heavy_library(code: str) -> None:
    assert imported(code)[0] == set()


COMMANDS = ["generate", "compare", "evaluate", "reproduce", "tune", "serve", "methods", "models", "doctor"]
HELP = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    heavy, stdout = imported(SPECTRUM, *arguments)
    assert heavy == set()
    assert (spectrum_diffusion.__version__ if arguments == ["--version"] else "Usage: spectrum") in stdout


def test_every_command_is_in_the_list_of_help() -> None:
    stdout = imported(SPECTRUM, "--help")[1]
    assert all(command in stdout for command in COMMANDS)
    assert len([word for word in stdout.split() if word == "│"]) >= 2 * len(COMMANDS)


WORDS = [
    ("spectrum generate --method tea", {"teacache"}),
    ("spectrum generate --method diffusers:", {"diffusers:fbc", "diffusers:pab"}),
    ("spectrum compare --methods paper,hi", {"paper,hicache"}),
    ("spectrum tune --model tiny-f", {"tiny-flux"}),
    ("spectrum evaluate --offload seq", {"sequential"}),
    ("spectrum repro", {"reproduce"}),
]


@pytest.mark.parametrize(("typed", "offered"), WORDS, ids=[typed for typed, _ in WORDS])
def test_the_shell_completes_without_a_heavy_library(typed: str, offered: set[str]) -> None:
    words = {"_TYPER_COMPLETE_ARGS": typed, "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    heavy, stdout = imported(SPECTRUM, _SPECTRUM_COMPLETE="complete_bash", **words)
    assert heavy == set()
    assert offered <= set(stdout.split())
    assert all(word.startswith(typed.split()[-1]) for word in stdout.split())


def test_the_completion_script_is_printed() -> None:
    heavy, stdout = imported(
        "import shellingham; shellingham.detect_shell = lambda *_: ('bash', '/bin/bash')\n" + SPECTRUM,
        "--show-completion",
    )
    assert heavy == set()
    assert "_SPECTRUM_COMPLETE=complete_bash" in stdout


def test_the_completion_is_installed_in_the_home_folder(tmp_path: Any) -> None:
    imported(
        "import shellingham; shellingham.detect_shell = lambda *_: ('bash', '/bin/bash')\n" + SPECTRUM,
        "--install-completion",
        HOME=str(tmp_path),
    )
    assert "_SPECTRUM_COMPLETE" in (tmp_path / ".bash_completions" / "spectrum.sh").read_text(encoding="utf-8")


def test_completions() -> None:
    assert complete_method("taylor") == ["taylor", "taylorseer"]
    assert complete_methods("paper,taylor:order=2,taylors") == ["paper,taylor:order=2,taylorseer"]
    assert "tiny-flux" in complete_model("")
    assert complete_from(("none", "model"))("m") == ["model"]


@pytest.mark.parametrize("name", spectrum_diffusion.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(importlib.import_module("spectrum_diffusion"), name) is not None
    assert name in dir(spectrum_diffusion)


def test_a_type_checker_sees_every_public_name() -> None:
    """The names that are imported when used are those that the block for type checkers imports."""
    stub: dict[str, Any] = {"__package__": "spectrum_diffusion"}
    source = importlib.util.find_spec("spectrum_diffusion").loader.get_source("spectrum_diffusion")
    block = source[source.index("if TYPE_CHECKING:") : source.index("__all__ = [")]
    exec(block.replace("if TYPE_CHECKING:", "if True:"), stub)
    public = set(spectrum_diffusion.__all__) - {"__version__"}
    assert public <= stub.keys()
    assert all(stub[name] is getattr(spectrum_diffusion, name) for name in public)


def test_modules_are_attributes_and_wrong_names_are_not() -> None:
    code = (
        "import spectrum_diffusion as sd\n"
        "assert sd.errors.SpectrumError is sd.SpectrumError\n"
        "assert sd.handle.enable is sd.enable\n"
        "assert not hasattr(sd, 'enabel') and not hasattr(sd, '_private')\n"
    )
    imported(code)
    with pytest.raises(AttributeError, match="module 'spectrum_diffusion' has no attribute 'enabel'"):
        spectrum_diffusion.enabel  # noqa: B018


def test_a_module_whose_needs_are_missing_says_what_is_missing() -> None:
    code = (
        "import spectrum_diffusion as sd\n"
        "sys.modules['torch'] = None\n"
        "try: sd.handle\n"
        "except ImportError as error: print(error.name)\n"
    )
    assert imported(code)[1].strip() == "torch"


@pytest.mark.parametrize(
    "way",
    [
        "from spectrum_diffusion.methods import METHODS",
        "from spectrum_diffusion.interop import EXTERNAL_CACHES; from spectrum_diffusion.methods import METHODS",
        "import spectrum_diffusion; METHODS = spectrum_diffusion.METHODS",
    ],
)
def test_the_caches_of_other_packages_are_listed_however_the_methods_are_imported(way: str) -> None:
    checks = (
        "assert 'diffusers:fbc' in METHODS and 'cache-dit:dbcache' in list(METHODS)\n"
        "assert next(iter(METHODS)) == 'spectrum'\n"
        "assert METHODS['diffusers:pab'].package == 'diffusers'\n"
    )
    imported(f"{way}\n{checks}")
