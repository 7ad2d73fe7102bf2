"""Output on code pages that lack most characters: spelled in ASCII, never an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spectrum_diffusion.cli import app
from spectrum_diffusion.cli.encoding import SPELLED, spell

PAGES = ["cp1252", "cp437", "ascii"]
COMMANDS = ["generate", "compare", "evaluate", "reproduce", "tune", "methods", "models", "doctor", "demo"]
CASES = [["--help"], *([command, "--help"] for command in COMMANDS), ["methods"], ["models"], ["doctor"]]


def run(page: str, *arguments: object, code: int = 0) -> Any:
    result = CliRunner(charset=page).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output} {result.exception!r}"
    assert "codec can't encode" not in result.output
    return result


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("arguments", CASES, ids=" ".join)
def test_help_and_lists_print_on_any_code_page(page: str, arguments: list[str]) -> None:
    plain = run("utf-8", *arguments).stdout
    assert run(page, *arguments).stdout.count("?") == plain.count("?")  # nothing stands for an unknown character


@pytest.mark.parametrize("page", PAGES)
def test_results_and_tables_print_on_any_code_page(page: str, tmp_path: Path) -> None:
    quick = ["--steps", 6, "--device", "cpu"]
    evaluated = [
        "evaluate",
        "red apple – ½ 日",
        "--methods",
        "reuse",
        "--metrics",
        "psnr",
        "-o",
        tmp_path / "e",
        *quick,
    ]
    assert "reuse" in run(page, *evaluated).stdout
    file = tmp_path / "a.png"
    printed = json.loads(run(page, "generate", "roter Apfel 🍎 – 日", "-o", file, "--json", *quick).stdout)
    assert printed["prompt"] == "roter Apfel 🍎 – 日"  # JSON loses nothing
    assert "6 steps" in run(page, "generate", "red apple", "-o", file, *quick).stdout


@pytest.mark.parametrize("page", PAGES)
def test_errors_print_on_any_code_page(page: str, tmp_path: Path) -> None:
    result = run(page, "generate", "apple", "--seed", -1, "-o", tmp_path / "a.png", code=2)
    assert "Error: --seed -1 is out of range" in result.stderr


@pytest.mark.parametrize("page", PAGES)
def test_a_real_stream_of_the_code_page(page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectrum_diffusion", "evaluate", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": page},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ViT-L/14" in done.stdout


def spelled(text: str, page: str) -> str:
    import codecs

    codecs.register_error("test.spell", spell)
    return text.encode(page, errors="test.spell").decode(page)


def test_characters_are_spelled() -> None:
    assert spelled("0 … 2⁶³−1, W×H → é ≥ λ", "ascii") == "0 ... 263-1, WxH -> e >= lambda"
    assert spelled("│─┃━╭", "ascii") == "|-|-|"
    assert spelled("日", "ascii") == "?"
    assert spelled("é –", "cp1252") == "é –"
    assert all(text.isascii() for text in SPELLED.values())


def test_every_character_that_the_commands_may_print_is_spelled() -> None:
    """What stands in the package's own strings, and in the pages that reproduce prints."""
    root = Path(__file__).parents[2]
    texts = "".join(path.read_text(encoding="utf-8") for path in (root / "src").rglob("*.py"))
    unknown = {character for character in texts if not character.isascii() and spelled(character, "ascii") == "?"}
    assert unknown <= set("日🍎½"), f"add {''.join(sorted(unknown))} to SPELLED"
