"""`spectrum evaluate --ray local`: results and files of a local evaluation, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batches import ENVIRONMENT, PATIENCE, QUICK, finish, prompt_file, start, until
from extras import needs
from rays import RAY, actors, children, has_ended

needs("ray.data", "pyarrow")

from spectrum_diffusion.bench.evaluate.crew import CaseOutcome, _check_alike
from spectrum_diffusion.errors import InvalidOptionError

PROMPTS, ROWS = 6, 3
METHODS = ("--methods", "fewer-steps:speedup=2,paper")
CALLS = PROMPTS * ROWS + ROWS
"""Units, and the operations of each row counted once."""
DIFFERS = {"seconds", "loop_seconds", "memory", "run", "history_bytes"}
"""What differs between two local evaluations too."""


def evaluation(prompts: Path, out: Path, *arguments: str) -> list[str]:
    line = ("evaluate", "--prompts", str(prompts), "-o", str(out), "--metrics", "psnr,ssim", "--json")
    return [sys.executable, "-m", "spectrum_diffusion", *line, *QUICK, *METHODS, *arguments]


def kept(out: Path) -> dict[str, bytes]:
    """The images, by path."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("units/**/*.png")}


def records(out: Path) -> int:
    return len(list(out.glob("units/**/*.json")))


def lines(out: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (out / "results.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in row.items() if name not in DIFFERS} for row in rows]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_file(tmp_path_factory.mktemp("prompts"), PROMPTS)


@pytest.fixture(scope="module")
def local(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation in one process."""
    out = tmp_path_factory.mktemp("local")
    assert finish(start(evaluation(prompts, out)))["computed"] == CALLS
    return out


def test_a_killed_actor_changes_no_result(prompts: Path, local: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(evaluation(prompts, out, *RAY))
    until(lambda: records(out) >= 4, process)
    assert records(out) < PROMPTS * ROWS
    os.kill(actors(process.pid)[0], signal.SIGKILL)
    report = finish(process)
    assert report["failures"] == report["problems"] == {}
    assert kept(out) == kept(local)
    assert lines(out) == lines(local)
    rows, alone = (json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"] for folder in (out, local))
    for row, other in zip(rows, alone, strict=True):
        for name in ("label", "units", "nfe", "fewer_evaluations", "metrics", "flops", "options"):
            assert row[name] == other[name]
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["runs"][0]["actors"] == 2
    again = finish(start(evaluation(prompts, out)))
    assert again["computed"] == 0


def test_a_killed_driver_loses_no_unit_and_the_next_makes_the_rest(prompts: Path, local: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(evaluation(prompts, out, *RAY))
    until(lambda: records(out) >= 4, process)
    below = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: has_ended(below), process)
    before = records(out)
    assert 4 <= before < PROMPTS * ROWS
    report = finish(start(evaluation(prompts, out, *RAY)))
    assert report["computed"] <= CALLS - before
    assert kept(out) == kept(local)
    assert lines(out) == lines(local)


def test_a_method_that_fails_is_named_and_the_others_go_on(prompts: Path, tmp_path: Path) -> None:
    methods = ("--methods", "paper,taylor:evaluated=[0,50]", "--limit", "2")
    process = start(evaluation(prompts, tmp_path, *RAY, *methods))
    report = finish(process, code=1)
    assert len(report["failures"]) == 1
    assert [row["units"] for row in report["rows"]][:2] == [2, 2]


def test_a_pipeline_that_fails_ends_the_evaluation_with_its_reason(prompts: Path, tmp_path: Path) -> None:
    process = start(evaluation(prompts, tmp_path, *RAY, "--call", "prompt_embeds=1"))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the untouched pipeline failed in an actor: ValueError: Cannot forward both `prompt`" in stderr


def test_a_mistake_that_only_the_model_shows_is_that_of_a_local_run(prompts: Path, tmp_path: Path) -> None:
    process = start(evaluation(prompts, tmp_path, *RAY, "--size", "60"))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "Error: --size 60x60 does not fit FluxPipeline" in stderr


def test_a_model_that_cannot_be_loaded_is_a_message(prompts: Path, tmp_path: Path) -> None:
    from spectrum_diffusion.loading import ASSETS, DEFAULT_MODEL

    broken = tmp_path / "broken"
    shutil.copytree(ASSETS / DEFAULT_MODEL, broken)
    next((broken / "transformer").glob("*.safetensors")).unlink()
    process = start(evaluation(prompts, tmp_path / "out", *RAY, "--model", str(broken)))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert f"Error: --model '{broken}' can't be loaded" in stderr


def test_options_of_actors_without_a_cluster_are_refused(prompts: Path, tmp_path: Path) -> None:
    line = evaluation(prompts, tmp_path, "--actors", "2")
    run = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert run.returncode == 2
    assert "--actors 2 is for the actors of a cluster: add --ray" in run.stderr


def test_machines_that_are_not_alike_are_refused() -> None:
    planned = {"path": False, "environment": {"device": "H100", "torch": "2.9"}}
    _check_alike(planned, planned)
    with pytest.raises(InvalidOptionError, match=r"not alike \(device A100 here and H100 there\)"):
        _check_alike(planned, {"path": False, "environment": {"device": "A100", "torch": "2.9"}})


def test_a_full_disk_ends_the_evaluation() -> None:
    from spectrum_diffusion.atomic import StoreError

    with pytest.raises(StoreError, match="is full"):
        CaseOutcome(0, 1, {}, [], full="the disk is full").raise_error()
