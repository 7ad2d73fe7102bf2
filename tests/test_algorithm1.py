"""The library against the slow, independent Algorithm 1, over every tiny pipeline."""

from __future__ import annotations

import pytest
import torch
from algorithm1 import slow_run
from pipelines import PIPELINES

import spectrum_diffusion

EVALUATED = [0, 1, 2, 3, 4, 7]
pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def schedule_for(total: int) -> list[int]:
    """The start of ``EVALUATED`` and one late step, for runs of 6 to 19 steps."""
    return [step for step in (*EVALUATED, 11, 15) if step < total - 1]


@pytest.mark.parametrize("name", PIPELINES)
def test_equals_slow_algorithm(name: str) -> None:
    entry = PIPELINES[name]
    pipe, total = entry.build(), entry.total(10)
    evaluated = schedule_for(total)
    slow, decisions = slow_run(entry, pipe, evaluated, total, steps=10)
    with spectrum_diffusion.enable(pipe, "paper", evaluated=evaluated) as handle:
        fast = entry.call(pipe, steps=10)
        summary = handle.summary()
    scale = slow.abs().max()
    assert torch.allclose(fast / scale, slow / scale, rtol=0, atol=1e-5)
    assert summary.steps == total
    ran = sum(sum(steps.values()) for steps in decisions.values())
    assert sum(branch.evaluated for branch in summary.branches.values()) == ran
    assert sum(branch.steps for branch in summary.branches.values()) == summary.calls


@pytest.mark.parametrize("site", ["last_block", "output"])
@pytest.mark.parametrize("name", PIPELINES)
def test_untouched_when_nothing_is_skipped_and_after_disable(name: str, site: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    plain = entry.call(pipe, steps=6)
    total = entry.total(6)
    with spectrum_diffusion.enable(pipe, "paper", site=site, evaluated=range(total)) as handle:
        assert torch.equal(entry.call(pipe, steps=6), plain)
        assert handle.summary().nfe == total
    with spectrum_diffusion.enable(pipe, "paper", site=site, warmup=2):
        assert not torch.equal(entry.call(pipe, steps=6), plain)
    assert torch.equal(entry.call(pipe, steps=6), plain)
