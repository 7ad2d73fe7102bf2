"""A method, site, metric or command is one new file and at most one line elsewhere; a denoiser is one row."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "spectrum_diffusion"

MEAN = '''"""The mean of the last two features (a method made up for a test)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.forecast import Weights
from .base import Method


@dataclass(frozen=True, kw_only=True)
class Mean(Method):
    """The mean of the last two features."""

    @property
    def window(self) -> int:
        return 2

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        return [1 / len(evaluated)] * len(evaluated)
'''

TAIL = '''"""The output of the tails (a site made up for a test)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .blocks import BlockSite, Roles
from .denoisers import last_block_row, resolve


class TailOutput(BlockSite):
    """The feature is what the tails answer."""

    name = "tail"
    keeps = "the output of the tails"

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        blocks, tails = resolve(model, last_block_row(model))
        return {"block": blocks, "module": tails}
'''

MAD = '''"""Mean absolute difference (a metric made up for a test)."""

from __future__ import annotations

from .base import Metric

MAD = Metric(name="mad", title="MAD", higher_is_better=False, score=lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
'''

HELLO = '''"""The command ``spectrum hello``."""

from __future__ import annotations

import typer

from ..app import app


@app.command()
def hello() -> None:
    """Say hello."""
    typer.echo("hello")
'''

MODEL = """
import torch
from torch import nn
import spectrum_diffusion

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages, self.last = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.LayerNorm(2)
        self.ran = []
        for name, module in self.named_modules():
            module.register_forward_pre_hook(lambda module, _, name=name: self.ran.append(name))

    def forward(self, hidden_states):
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return self.last(hidden_states)

def skipped(**options):
    model, outputs = Toy().eval(), []
    with spectrum_diffusion.enable(model, **options) as handle, handle.run(total_steps=3) as run, torch.no_grad():
        for step in range(3):
            model.ran.clear()
            run.step(step)
            outputs.append(model(torch.full((1, 2), float(step))))
    return outputs, model.ran
"""
ROW = 'spectrum_diffusion.register_denoiser("Toy", blocks="stages", tail="last")\n'


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package without its small model, and of the pages of the methods."""
    shutil.copytree(PACKAGE, tmp_path / "src" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "tiny-flux"))
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "methods", tmp_path / "docs" / "methods")
    shutil.copy(ROOT / "docs" / "method_pages.py", tmp_path / "docs")
    return tmp_path


def write(copy: Path, path: str, text: str) -> None:
    file = copy / "src" / PACKAGE.name / path
    assert not file.exists()
    file.write_text(text, encoding="utf-8")


def insert(copy: Path, path: str, line: str, *, after: str) -> None:
    file = copy / "src" / PACKAGE.name / path
    head, found, tail = file.read_text(encoding="utf-8").partition(after + "\n")
    assert found, f"{path} no longer has the line {after!r}"
    file.write_text(head + found + line + "\n" + tail, encoding="utf-8")


def edits(copy: Path) -> dict[str, int]:
    """File → number of changed lines, new files left out; a file that is gone counts whole."""
    changed = {}
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        texts = (path.read_text(encoding="utf-8"), (copy / "src" / PACKAGE.name / name).read_text(encoding="utf-8"))
        lines = list(difflib.unified_diff(*(text.splitlines() for text in texts), lineterm="", n=0))[2:]
        if count := sum(line[0] in "+-" for line in lines):
            changed[name] = count
    return changed


def python(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def spectrum(copy: Path, *arguments: str) -> str:
    return python(copy, "-c", "from spectrum_diffusion.cli import main; main()", *arguments)


def test_a_method_is_one_file_and_one_line(copy: Path) -> None:
    write(copy, "methods/mean.py", MEAN)
    insert(copy, "methods/__init__.py", '        "mean": "mean:Mean",', after='        "fora": "fora:Fora",')
    assert edits(copy) == {"methods/__init__.py": 1}
    listed = {method["name"]: method for method in json.loads(spectrum(copy, "methods", "--json"))["methods"]}
    assert listed["mean"]["idea"] == "The mean of the last two features."
    program = """
outputs, ran = skipped(method="mean", evaluated=[0, 1])
assert ran == ["", "last"], ran
outputs, _ = skipped(method="mean", evaluated=[0, 1], site="output")
assert torch.allclose(outputs[2], (outputs[0] + outputs[1]) / 2)
"""
    python(copy, "-c", MODEL + ROW + program)
    python(copy, "docs/method_pages.py")
    assert "[`mean`](mean.md)" in (copy / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert "The mean of the last two features." in (copy / "docs" / "methods" / "mean.md").read_text(encoding="utf-8")


def test_a_denoiser_is_one_row(copy: Path) -> None:
    row = '    ("stages", "last", "Toy"),'
    insert(copy, "sites/denoisers.py", row, after='    ("decoders", "decoder_norm", "T5FilmDecoder"),')
    assert edits(copy) == {"sites/denoisers.py": 1}
    python(copy, "-c", MODEL + 'assert skipped(method="reuse", evaluated=[0])[1] == ["", "last"]')


def test_a_site_is_one_file_and_one_line(copy: Path) -> None:
    write(copy, "sites/tail.py", TAIL)
    insert(copy, "sites/__init__.py", '    "tail": "tail:TailOutput",', after='    "module": "module:Modules",')
    assert edits(copy) == {"sites/__init__.py": 1}
    program = """
outputs, ran = skipped(method="taylor", evaluated=[0, 1], site="tail")
assert ran == [""], ran
assert torch.allclose(outputs[2], 2 * outputs[1] - outputs[0], atol=1e-6)
"""
    python(copy, "-c", MODEL + ROW + program)
    (taylor,) = (m for m in json.loads(spectrum(copy, "methods", "--json"))["methods"] if m["name"] == "taylor")
    assert "tail" in taylor["sites"]


def test_a_metric_is_one_file_and_one_line(copy: Path) -> None:
    write(copy, "bench/metrics/mad.py", MAD)
    insert(copy, "bench/metrics/__init__.py", '    "mad:MAD",', after='    "pixels:PSNR",')
    assert edits(copy) == {"bench/metrics/__init__.py": 1}
    program = """
import torch
from spectrum_diffusion.metrics import METRICS
assert METRICS["mad"].compare(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.25)) == 0.25
assert METRICS["mad"].available() == ""
"""
    python(copy, "-c", program)


def test_a_command_is_one_file(copy: Path) -> None:
    write(copy, "cli/commands/hello.py", HELLO)
    assert edits(copy) == {}
    assert spectrum(copy, "hello") == "hello\n"
    assert "Say hello." in spectrum(copy, "--help")
