"""Virtual environments for the programs, each with the versions of its lock file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ....errors import InvalidOptionError, ProgramError

FOLDER_VARIABLE = "SPECTRUM_PROGRAMS"
PYTHONS = ("3.11",)
"""Versions of Python for which all the pinned packages can be had."""

_LOCKS = Path(__file__).parent
_BUILD_TOOLS = ("setuptools==80.10.2", "wheel==0.48.0")


def environment_of(name: str) -> Path:
    """Where the environment of a program lies: under ``SPECTRUM_PROGRAMS``, or in the user's cache."""
    folder = os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "spectrum-diffusion" / "programs"
    return Path(folder) / name


def python_of(name: str) -> Path:
    """The Python of a program's environment."""
    folder, windows = environment_of(name), os.name == "nt"
    return folder / ("Scripts/python.exe" if windows else "bin/python")


def install(name: str, python: str = "python3.11") -> Path:
    """Make the environment of a program, with the pinned versions; its folder.

    Args:
        name: of the program.
        python: the interpreter to make it with, of a version in ``PYTHONS``.

    Raises:
        InvalidOptionError: no such program or interpreter, or one of another version.
        ProgramError: the packages can't be installed; what there was before is gone.
    """
    lock = _LOCKS / f"{name}.txt"
    if not lock.is_file():
        known = ", ".join(sorted(path.stem for path in _LOCKS.glob("*.txt")))
        raise InvalidOptionError(f"there is no program {name!r}: choose one of {known}")
    _check_python(python)
    folder = environment_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run(python, "-m", "venv", str(folder))
        pip = (str(python_of(name)), "-m", "pip", "install", "--disable-pip-version-check")
        _run(*pip, *_BUILD_TOOLS)
        # Some of the packages are old sources that need the setuptools of then, which isolation would not give them.
        _run(*pip, "--no-deps", "--no-build-isolation", "-r", str(lock))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half an environment would look like a whole one
        raise
    return folder


def _check_python(python: str) -> None:
    if shutil.which(python) is None:
        raise InvalidOptionError(f"there is no interpreter {python!r}: give one of Python {' or '.join(PYTHONS)}")
    version = _run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    if version not in PYTHONS:
        raise InvalidOptionError(
            f"{python!r} is Python {version}, which not all of the pinned packages support: "
            f"give one of Python {' or '.join(PYTHONS)}"
        )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProgramError(f"{' '.join(command[:4])} … failed: {last_lines(done.stdout + done.stderr)}")
    return done.stdout


def last_lines(text: str, count: int = 5) -> str:
    """What a program said last, where the reason mostly stands."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
