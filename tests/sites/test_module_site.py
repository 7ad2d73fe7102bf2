"""The module site over every denoiser class: what is kept is what ran, and nothing of it runs on a skipped step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import VARIANTS, ZOO, samples_of

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.sites.module import modules_of

ENTRIES = {**ZOO, **VARIANTS}
AVAILABLE = [name for name, entry in ENTRIES.items() if entry.available]


def with_modules(name: str) -> tuple[nn.Module, list[nn.Module], list[nn.Module]]:
    model = ENTRIES[name].build()
    try:
        features, skipped = modules_of(model)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    return model, features, skipped


@pytest.mark.parametrize("name", AVAILABLE)
def test_skipped_step_replays_every_module_and_runs_none(name: str) -> None:
    model, features, skipped = with_modules(name)
    entry = ENTRIES[name]
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=0)))
    ran: list[str] = []
    for module in (*features, *skipped):
        module.register_forward_pre_hook(lambda module, _: ran.append(type(module).__name__))
    with spectrum_diffusion.enable(model, "fora") as handle, torch.no_grad():
        with handle.run(total_steps=2) as loop:
            loop.step(0)
            evaluated = samples_of(model(**entry.inputs(seed=0)))
            assert ran
            ran.clear()
            loop.step(1)
            replayed = samples_of(model(**entry.inputs(seed=0)))
    assert ran == []
    for ours, again, theirs in zip(evaluated, replayed, plain, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(again, theirs)
