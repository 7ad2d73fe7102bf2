"""The examples run as they are, offline, and leave what they say."""

import json
import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from spectrum_diffusion.core import schedule


@pytest.fixture
def run_example(request, tmp_path, monkeypatch):
    """Runs ``main()`` of an example in an empty folder."""

    def run(name):
        script = request.config.rootpath / "examples" / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        return runpy.run_path(str(script))["main"]()

    return run


def test_one_line_leaves_two_pictures_that_are_alike(run_example, tmp_path):
    assert run_example("one_line") == {"untouched": 50, "spectrum": 14}
    pictures = [Image.open(tmp_path / "out/one_line" / f"{name}.png") for name in ("untouched", "spectrum")]
    untouched, forecast = (np.asarray(picture, dtype=float) / 255 for picture in pictures)  # (64, 64, 3)
    assert untouched.shape == forecast.shape == (64, 64, 3)
    assert 0 < np.mean((untouched - forecast) ** 2) < 0.01  # 20 dB


def test_own_loop_skips_in_both_branches(run_example, tmp_path):
    summary = run_example("own_loop")
    wanted = schedule.nodes_for_speedup(30, 2.5)
    assert summary["evaluated"] == wanted
    counts = {
        "evaluated": len(wanted),
        "forecast": 30 - len(wanted),
        "partial": 0,
        "fallback": 0,
        "steps": 30,
    }
    assert summary["branches"] == {"cond": counts, "uncond": counts}
    assert torch.load(tmp_path / "out/own_loop/latents.pt").isfinite().all()


def test_audit_reports_an_error_for_each_forecast(run_example, tmp_path):
    report = run_example("audit")
    forecast = [str(step) for step, _, action, _ in report["steps"] if action == "forecast"]
    assert len(report["steps"]) == 50
    assert list(report["summary"]["errors"]) == forecast
    assert json.loads((tmp_path / "out/audit/audit.json").read_text())["summary"] == report["summary"]
