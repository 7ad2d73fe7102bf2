"""Virtual environments for the programs, each with the versions of its lock file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ....errors import InvalidOptionError, ProgramError

FOLDER_VARIABLE = "SPECTRUM_PROGRAMS"
PYTHONS = ("3.11",)
"""Versions of Python for which all pinned packages exist."""

_LOCKS = Path(__file__).parent
_BUILD_TOOLS = ("setuptools==80.10.2", "wheel==0.48.0")


def environment_of(name: str) -> Path:
    """The folder of a program's environment: under ``SPECTRUM_PROGRAMS``, or in the user's cache."""
    folder = os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "spectrum-diffusion" / "programs"
    return Path(folder) / name


def python_of(name: str) -> Path:
    """The Python of a program's environment."""
    folder, windows = environment_of(name), os.name == "nt"
    return folder / ("Scripts/python.exe" if windows else "bin/python")


def install(name: str, python: str = "python3.11") -> Path:
    """Create the environment of a program with its pinned versions, and return the folder.

    Args:
        name: of the program.
        python: an interpreter of a version in ``PYTHONS``.

    Raises:
        InvalidOptionError: the program or interpreter does not exist, or has another version.
        ProgramError: the packages can't be installed. An earlier environment is removed.
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
        # Some packages are old sources that need the setuptools of their time, which build isolation would replace.
        _run(*pip, "--no-deps", "--no-build-isolation", "-r", str(lock))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete environment would look complete
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
    """The last lines of a program's output, which mostly contain the reason."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
