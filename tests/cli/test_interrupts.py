"""Ctrl-C at any moment: one message that says what is kept, exit code 130, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def interrupted(
    code: str, arguments: list[str], when: Path, cwd: Path, seconds: float = 0.1
) -> subprocess.CompletedProcess[str]:
    """Start the command, press Ctrl-C some seconds after a file is there, and wait for the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path)},
    )
    begin = time.monotonic()
    while not list(when.parent.rglob(when.name)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begin < 200
        time.sleep(0.05)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    return subprocess.CompletedProcess(code, process.returncode, stdout, stderr)


RUN = "from spectrum_diffusion.__main__ import main; print('ready', flush=True); main()"
EVALUATE = ["evaluate", "--prompts", "tiny", "--methods", "reuse,paper", "--metrics", "psnr", "-o", "out"]


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8, 1.6, 3.0])
def test_in_the_first_seconds_while_libraries_are_imported(seconds: float, tmp_path: Path) -> None:
    arguments = ["generate", "red apple", "-o", "a.png", "--steps", "1000", "--device", "cpu"]
    begun = "import pathlib; from spectrum_diffusion import __main__; pathlib.Path('begun').touch()\n"
    done = interrupted(begun + RUN, arguments, tmp_path / "begun", tmp_path, seconds)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout.replace("ready\n", "")) == (130, "")
    assert done.stderr.startswith("Interrupted.")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_evaluation_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    arguments = [*EVALUATE, "--limit", "6", "--steps", "20", "--device", "cpu"]
    done = interrupted(RUN, arguments, tmp_path / "out" / "units" / "*", tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 130
    assert done.stderr.strip().endswith(
        "Interrupted. Finished results are kept in out; the same command goes on from there."
    )
    assert list((tmp_path / "out" / "units").iterdir())


MESSAGES = {
    "generate": (["generate", "apple", "-o", "a.png", "--steps", "1000"], "Finished files are kept; the same command"),
    "compare": (
        ["compare", "apple", "-o", "out", "--steps", "1000"],
        "Finished images are kept in out; the same command continues from there",
    ),
    "tune": (
        ["tune", "apple", "--method", "easycache", "-o", "p.json", "--steps", "1000"],
        "Nothing is kept; the same command starts again.",
    ),
}


@pytest.mark.parametrize("command", MESSAGES)
def test_the_other_commands_say_what_is_kept(command: str, tmp_path: Path) -> None:
    arguments, message = MESSAGES[command]
    # Ctrl-C as soon as the denoiser is called for the first time: a file tells.
    code = (
        "import pathlib\nfrom spectrum_diffusion.core.run import Run\n"
        "call = Run.call\n"
        "Run.call = lambda self, *args: (pathlib.Path('called').touch(), call(self, *args))[1]\n" + RUN
    )
    done = interrupted(code, [*arguments, "--device", "cpu"], tmp_path / "called", tmp_path)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (130, "ready\n")
    assert f"Interrupted. {message}" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"called", "out"}


def test_an_import_that_turns_the_interrupt_into_another_error_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\npathlib.Path('begun').touch()\n"
        "try: time.sleep(60)\nexcept BaseException: raise ImportError('half of it is there')\n",
        encoding="utf-8",
    )
    done = interrupted(RUN, ["--import", "mine", "methods"], tmp_path / "begun", tmp_path)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
