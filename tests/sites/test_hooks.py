"""The sites over every denoiser class of diffusers: nothing copied, nothing changed, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from zoo import VARIANTS, ZOO, samples_of

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.sites import denoisers

ENTRIES = {**ZOO, **VARIANTS}
AVAILABLE = [name for name, entry in ENTRIES.items() if entry.available]
CALLED_BY_THE_MODEL = {"DiTTransformer2DModel": "norm1.emb"}
"""Modules inside a block that the model itself calls after its blocks."""


def last_block(name: str) -> nn.Module:
    model = ENTRIES[name].build()
    row = denoisers.row_for(model)
    assert row is not None
    if not row.blocks:
        pytest.skip(f"{name}: {row.reason}")
    return model


def state_of(model: nn.Module) -> list[tuple[str, list[str], int]]:
    """Every module's attribute names and number of hooks; models rebuild some values themselves."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (name, sorted(module.__dict__), sum(len(module.__dict__[hook]) for hook in hooks))
        for name, module in model.named_modules()
    ]


def run(handle: Any, model: nn.Module, calls: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    with torch.no_grad(), handle.run(total_steps=len(calls)) as loop:
        outputs = []
        for step, inputs in enumerate(calls):
            loop.step(step)
            outputs.append(samples_of(model(**inputs)))
    return outputs


@pytest.mark.parametrize("name", AVAILABLE)
def test_evaluated_steps_are_untouched_and_disable_leaves_nothing(name: str) -> None:
    model, entry = last_block(name), ENTRIES[name]
    calls = [entry.inputs(seed=seed) for seed in range(3)]
    with torch.no_grad():
        plain = [samples_of(model(**entry.inputs(seed=seed))) for seed in range(3)]
    before, forward = state_of(model), model.forward
    handle = spectrum_diffusion.enable(model, "reuse", evaluated=range(3))
    outputs = run(handle, model, calls)
    assert model.forward == forward
    for ours, theirs in zip(outputs, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    spectrum_diffusion.disable(model)
    assert state_of(model) == before


@pytest.mark.parametrize("name", AVAILABLE)
def test_skipped_step_runs_no_block_and_replays_the_feature(name: str) -> None:
    model, entry = last_block(name), ENTRIES[name]
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=0)))
    row = denoisers.row_for(model)
    assert row is not None
    exempt = CALLED_BY_THE_MODEL.get(name, "nothing")
    ran: list[str] = []
    for block in denoisers.resolve(model, row)[0]:
        for path, module in block.named_modules():
            if not path.startswith(exempt):
                module.register_forward_pre_hook(lambda _, __, path=path: ran.append(path))
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0]) as handle, torch.no_grad():
        with handle.run(total_steps=2) as loop:
            loop.step(0)
            model(**entry.inputs(seed=0))
            ran.clear()
            loop.step(1)
            replayed = samples_of(model(**entry.inputs(seed=0)))
        assert handle.summary().branches["0"].forecast == 1
    assert ran == []
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))


@pytest.mark.parametrize("name", AVAILABLE)
def test_output_depends_on_the_forecast(name: str) -> None:
    model, entry = last_block(name), ENTRIES[name]
    calls = [entry.inputs(seed=seed) for seed in (0, 1, 2)]
    outputs = {}
    for order in (0, 1):
        with spectrum_diffusion.enable(model, "taylor", order=order, evaluated=[0, 1]) as handle:
            outputs[order] = run(handle, model, [dict(c) for c in calls])[2]
    assert any(not torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))


@pytest.mark.parametrize("name", AVAILABLE)
def test_output_site_replays_and_runs_nothing(name: str) -> None:
    model, entry = ENTRIES[name].build(), ENTRIES[name]
    ran: list[nn.Module] = []
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=0)))
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
    with spectrum_diffusion.enable(model, "reuse", site="output", evaluated=[0]) as handle:
        outputs = run(handle, model, [entry.inputs(seed=0), entry.inputs(seed=1)])
        evaluated_modules = len(ran)
        assert handle.summary().evaluated == [0]
    assert evaluated_modules > 0
    assert all(torch.equal(a, b) for a, b in zip(outputs[1], plain, strict=True))


def test_unknown_class_names_the_ways_out() -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(UnsupportedModelError, match=r'site="output".*register_denoiser'):
        spectrum_diffusion.enable(Unknown().eval(), "paper")


def test_disable_undoes_a_bare_model_whose_handle_was_not_kept() -> None:
    model = ENTRIES["FluxTransformer2DModel"].build()
    before = state_of(model)
    spectrum_diffusion.enable(model)
    assert state_of(model) != before
    spectrum_diffusion.disable(model)
    assert state_of(model) == before
