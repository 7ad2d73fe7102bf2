"""``spectrum bench``: published configurations, scaled-down runs, dry runs, and what a table says of them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.bench.cost import watched
from spectrum_diffusion.bench.speed import ARCHITECTURES, Setting, build, dry_run, measure_speed
from spectrum_diffusion.bench.speed.measure import PACKAGE, WARNING, count_synchronizations
from spectrum_diffusion.bench.speed.report import plot, table
from spectrum_diffusion.cli.app import app

BILLIONS = {
    "flux": 11.9, "flux2": 32.2, "sd35-large": 8.06, "wan-14b": 14.3, "wan-1.3b": 1.42, "hunyuan": 12.8,
    "qwen-image": 20.4, "sdxl": 2.57,
}  # fmt: skip
"""Parameters that the publishers state, in billions."""
SMALL = 0.02
SLOW = pytest.mark.slow


def small(arch: str, **options: Any) -> Setting:
    return Setting(ARCHITECTURES[arch], SMALL, **{"steps": 10, **options})


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_every_architecture_has_its_published_size() -> None:
    assert BILLIONS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("arch", [*ARCHITECTURES][:1] + [pytest.param(a, marks=SLOW) for a in [*ARCHITECTURES][1:]])
def test_parameters_are_those_of_the_published_model(arch: str) -> None:
    pipe = build(Setting(ARCHITECTURES[arch]), weights=False)
    denoiser = getattr(pipe, ARCHITECTURES[arch].component)
    assert all(parameter.is_meta for parameter in denoiser.parameters())
    assert sum(parameter.numel() for parameter in denoiser.parameters()) / 1e9 == pytest.approx(
        BILLIONS[arch], rel=0.01
    )


@pytest.mark.parametrize("arch", [*ARCHITECTURES][:1] + [pytest.param(a, marks=SLOW) for a in [*ARCHITECTURES][1:]])
def test_a_scaled_architecture_samples(arch: str) -> None:
    pipe = build(small(arch, steps=2))
    denoiser: nn.Module = getattr(pipe, ARCHITECTURES[arch].component)
    assert all(torch.isfinite(parameter).all() for parameter in denoiser.parameters())
    with torch.no_grad():
        latents = pipe(**small(arch, steps=2).call(), generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    assert torch.isfinite(latents).all()


def test_buffers_are_computed_and_not_left_over() -> None:
    embedding = build(small("sd35-large")).transformer.pos_embed.pos_embed
    from diffusers import SD3Transformer2DModel

    assert torch.equal(embedding, SD3Transformer2DModel(**small("sd35-large").config()).pos_embed.pos_embed)


def test_a_row_is_what_was_measured() -> None:
    setting = small("flux", steps=12)
    methods: dict[str, Any] = {"ours": ("spectrum", {}), "all": ("paper", {"evaluated": range(12)})}
    result = measure_speed("flux", setting, methods, repeats=2)
    untouched, ours, whole = result.rows
    assert (untouched.nfe, untouched.speedup, untouched.skipped_ms) == (12, 1.0, None)
    assert whole.nfe == 12
    assert whole.skipped_ms is None
    assert ours.nfe < 12
    assert ours.ideal == 12 / ours.nfe
    assert ours.speedup is not None
    assert untouched.loop_seconds is not None
    assert ours.loop_seconds is not None
    assert math.isclose(ours.speedup, untouched.loop_seconds / ours.loop_seconds)
    assert ours.share == ours.speedup / ours.ideal
    assert ours.skipped_ms is not None
    assert ours.evaluated_ms is not None
    assert 0 < ours.skipped_ms < ours.evaluated_ms
    assert ours.synchronizations is None  # a CPU has none
    assert ours.evaluations == ours.nfe
    dry = dry_run("flux", setting, {"ours": ("spectrum", {})})
    assert dry.rows[1].history_bytes == ours.history_bytes
    assert ours.memory_above == pytest.approx(dry.rows[1].memory_above, rel=0.05)
    assert dry.rows[0].flops == whole.flops


@pytest.mark.slow
def test_flux_dev_computes_what_is_known() -> None:
    result = dry_run(
        "flux", Setting(ARCHITECTURES["flux"], dtype=torch.bfloat16), {"reuse": ("reuse", {"site": "output"})}
    )
    assert result.rows[0].flops == pytest.approx(50 * 74.385e12, rel=1e-4)
    assert result.rows[1].history_bytes == 4096 * 64 * 2  # one output of 4096 tokens of 64 channels


@pytest.mark.slow
def test_wan_14b_stays_within_a_fifth_of_a_gigabyte() -> None:
    setting = Setting(ARCHITECTURES["wan-14b"], dtype=torch.bfloat16)
    row = dry_run("wan-14b", setting, {"ours": ("spectrum", {})}).rows[1]
    assert row.history_bytes is not None
    assert row.memory_above is not None
    assert 0 < row.memory_above <= 0.2e9
    assert 0 < row.history_bytes <= 0.2e9


def test_steps_of_a_loop_are_timed_one_by_one() -> None:
    setting = small("flux", steps=4)
    pipe = build(setting)
    _, spent = watched(pipe, lambda: pipe(**setting.call()))
    (loop,) = spent.loops
    assert len(loop.steps) == len(loop.host) == 4
    assert sum(loop.steps) <= loop.seconds == spent.loop < spent.seconds


def test_only_synchronizations_of_this_library_count() -> None:
    def call() -> None:
        warnings.warn_explicit(WARNING, UserWarning, PACKAGE + "/core/run.py", 1)
        warnings.warn_explicit(WARNING, UserWarning, "/elsewhere/scheduling.py", 1)
        warnings.warn_explicit("something else", UserWarning, PACKAGE + "/core/run.py", 1)

    assert count_synchronizations(call) == 1


@pytest.mark.gpu
def test_no_synchronization_of_ours_on_a_device() -> None:
    setting = small("wan-1.3b", device="cuda", dtype=torch.bfloat16)
    row = measure_speed("wan-1.3b", setting, {"ours": ("spectrum", {})}, repeats=1).rows[1]
    assert row.synchronizations == 0


def test_command_writes_json_table_and_plot(tmp_path: Path) -> None:
    common = ("--arch", "flux", "--scale", str(SMALL), "--steps", "9", "--repeats", "1", "--device", "cpu")
    done = invoke(*common, "--against", "diffusers", "-o", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "flux.json").read_text())
    assert [row["method"] for row in printed["rows"]] == ["untouched", "spectrum", "diffusers:taylorseer"]
    assert printed["rows"][2]["history_bytes"] is None  # of another package
    assert (tmp_path / "flux.md").read_text() == table([printed]) + "\n"
    assert (tmp_path / "flux.png").stat().st_size > 1000
    dry = invoke(*common, "--dry-run", "--method", "spectrum,paper", "-o", str(tmp_path))
    assert dry.exit_code == 0, dry.output
    assert json.loads((tmp_path / "flux-dry-run.json").read_text())["kind"] == "dry run"


def test_a_method_that_does_not_run_is_a_row_with_its_reason(tmp_path: Path) -> None:
    setting = small("flux", steps=6)
    methods: dict[str, Any] = {"rival": ("deepcache", {}), "ours": ("reuse", {"evaluated": (0, 3)})}
    result = measure_speed("flux", setting, methods, repeats=1).to_dict()
    untouched, rival, ours = result["rows"]
    assert (untouched["nfe"], rival["nfe"], ours["nfe"]) == (6, None, 2)
    assert rival["error"].startswith("deepcache cannot run on FluxTransformer2DModel")
    assert rival["loop_seconds"] is rival["speedup"] is untouched["error"] is ours["error"] is None
    assert "| flux | rival | failed | – |" in table([result])
    plot([result], tmp_path / "plot.png")
    assert [row.nfe for row in dry_run("flux", setting, methods).rows] == [6, None, 2]
    for measured in (measure_speed, dry_run):
        with pytest.raises(UnsupportedModelError, match="deepcache cannot run"):
            measured("flux", setting, {"rival": ("deepcache", {})})


def test_the_command_measures_the_others_and_says_which_failed(tmp_path: Path) -> None:
    done = invoke("--arch", "flux", "--scale", str(SMALL), "--steps", "6", "--method", "deepcache,reuse", "--dry-run")
    assert done.exit_code == 1
    assert "| flux | reuse | " in done.stdout
    assert "deepcache failed: deepcache cannot run on FluxTransformer2DModel" in done.stderr


def test_plot_takes_rows_without_skipped_steps(tmp_path: Path) -> None:
    rows = [{"method": "untouched", "evaluated_ms": 2.0, "skipped_ms": None}]
    plot([{"arch": "flux", "rows": rows}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sdxxl"), "--arch 'sdxxl' is unknown (did you mean 'sdxl'?): choose one of flux"),
        (("--arch", "flux", "--dtype", "int4"), "--dtype 'int4' is unknown"),
        (("--arch", "flux", "--scale", "2"), "scale"),
        (("--arch", "flux", "--method", "spectrm"), "spectrm"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output
