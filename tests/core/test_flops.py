"""FLOP counts against closed forms, and of a generation against its evaluations."""

from __future__ import annotations

import pytest
import torch
from pipelines import PIPELINES
from torch import nn
from zoo import ZOO

import spectrum_diffusion
from spectrum_diffusion.core.flops import counting


def counted(model: nn.Module, inputs: dict[str, object]) -> int:
    with torch.no_grad(), counting() as counter:
        model(**inputs)
    return counter.get_total_flops()


def test_attention_of_the_cpu_is_counted() -> None:
    query, key = torch.randn(2, 3, 8, 16), torch.randn(2, 3, 10, 16)
    with counting() as counter:
        nn.functional.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 8 * 10 * 16)  # QKᵀ and its product with V


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel", "SD3Transformer2DModel"])
def test_same_count_as_on_meta_tensors(name: str) -> None:
    model, inputs = ZOO[name].build(), ZOO[name].inputs(seed=0)
    here = counted(model, inputs)
    there = counted(
        model.to("meta"), {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    )
    assert here == there > 0


def test_cost_of_a_generation_adds_up() -> None:
    entry = PIPELINES["flux-true-cfg"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "paper", site="output", flops=True) as handle:
        entry.call(pipe, steps=20)
        summary = handle.summary()
    assert summary.flops is not None
    assert summary.flops.evaluations == pytest.approx(summary.nfe)  # at the output nothing runs on a skipped step
    assert summary.to_dict()["flops"]["total"] == summary.flops.total
    assert "evaluations" in str(summary)
    with spectrum_diffusion.enable(pipe, "paper", flops=True) as handle:
        entry.call(pipe, steps=20)
        assert summary.nfe < handle.summary().flops.evaluations < summary.nfe + 6  # embeddings and projection run


def test_counting_changes_no_bit() -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "spectrum"):
        plain = torch.as_tensor(entry.call(pipe, steps=12))
    with spectrum_diffusion.enable(pipe, "spectrum", flops=True):
        assert torch.equal(plain, torch.as_tensor(entry.call(pipe, steps=12)))
    with spectrum_diffusion.enable(pipe, "spectrum") as handle:
        entry.call(pipe, steps=12)
        assert handle.summary().flops is None
