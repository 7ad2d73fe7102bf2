"""Every method on every kind of pipeline: run, abort, run again, disable; or a refusal that names what can be done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from aborts import AbortError, kept_features, state_of
from pipelines import PIPELINES

import spectrum_diffusion
from spectrum_diffusion import METHODS, UnsupportedModelError

STEPS = 12
NAMES = ["flux", "flux-true-cfg", "sd3", "wan", "wan22", "hunyuan-video", "sdxl", "sd15", "qwen-image", "cogvideox"]
OURS = [name for name in METHODS if ":" not in name]
CALIBRATED: dict[str, dict[str, Any]] = {
    "teacache": {"coefficients": [0.0, 0.0, 0.0, 1.0, 0.0]},
    "magcache": {"ratios": [1.0, *(0.99,) * 11]},
}
"""What a user would have from `spectrum tune`; the models here are random and have no calibration."""

pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def enabled(pipe: Any, method: str, **options: Any) -> spectrum_diffusion.Handle:
    return spectrum_diffusion.enable(pipe, method, **CALIBRATED.get(method, {}), **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", OURS)
def test_run_abort_run_again_disable(method: str, name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    before = state_of(pipe)
    failing = [False]

    def on_step(step: int, *_: Any) -> None:
        if failing[0] and step == STEPS // 2:
            raise AbortError

    try:
        handle = enabled(pipe, method, on_step=on_step)
    except UnsupportedModelError as error:
        check_refusal(str(error), state_of(pipe) == before)
        return
    first = torch.as_tensor(entry.call(pipe, steps=STEPS))
    summary = handle.summary()
    failing[0] = True
    if summary.steps > STEPS // 2:
        with pytest.raises(AbortError):
            entry.call(pipe, steps=STEPS)
    assert kept_features() == []
    failing[0] = False
    again = torch.as_tensor(entry.call(pipe, steps=STEPS))
    assert torch.equal(first, again)
    assert handle.summary().to_dict() == summary.to_dict()
    spectrum_diffusion.disable(pipe)
    assert state_of(pipe) == before
    assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS)), untouched)
    assert torch.isfinite(first).all()
    check_sums(summary)


def check_refusal(message: str, unchanged: bool) -> None:
    """A refusal changes nothing and names methods or sites that can."""
    assert unchanged
    assert any(other in message for other in METHODS) or "site=" in message


def check_sums(summary: spectrum_diffusion.Summary) -> None:
    for branch in summary.branches.values():
        assert branch.evaluated + branch.forecast + branch.partial == branch.steps
        assert branch.fallback <= branch.evaluated
    assert summary.calls == sum(branch.steps for branch in summary.branches.values())
    assert set(summary.fallbacks) <= set(summary.evaluated)


@pytest.mark.parametrize("site", ["last_block", "output", "module"])
@pytest.mark.parametrize("method", [name for name in OURS if issubclass(METHODS[name], spectrum_diffusion.Method)])
def test_slope_and_site_work_for_every_method_with_a_schedule(method: str, site: str) -> None:
    cls = METHODS[method]
    if site not in cls.sites:
        with pytest.raises(spectrum_diffusion.InvalidOptionError, match="site="):
            spectrum_diffusion.make_method(method, site=site)
        return
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, method, site=site, interval=2, warmup=3, slope=0.5) as handle:
        assert torch.isfinite(torch.as_tensor(entry.call(pipe, steps=16))).all()
        summary = handle.summary()
    if method != "fewer-steps":
        assert summary.evaluated == [0, 1, 2, 4, 6, 9, 12]
