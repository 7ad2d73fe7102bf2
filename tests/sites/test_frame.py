"""At the output site only tensors that the denoiser computed are forecast; all else of an output stays what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO

import spectrum_diffusion
from spectrum_diffusion.core.calls import Arguments
from spectrum_diffusion.sites.frame import Frame

KEPT = {"reuse": {"evaluated": [0], "site": "output"}, "easycache": {"threshold": 1e9, "warmup": 2}}


class Caching(nn.Module):
    """Writes keys and values into the cache that it is given, and hands it on, as AnyFlowFAR does."""

    def forward(self, hidden_states: Tensor, kv_cache: list[dict[str, Tensor]], t: float) -> tuple[Any, ...]:
        kv_cache[0]["keys"] += 1
        return 2 * hidden_states + t, None, kv_cache, 7, True


@pytest.mark.parametrize("method", KEPT)
def test_a_cache_that_is_handed_on_is_no_part_of_the_feature(method: str) -> None:
    model, first = Caching().eval(), torch.ones(2, 3)
    caches = [[{"keys": torch.zeros(1000), "values": torch.zeros(1000)}] for _ in range(4)]
    with spectrum_diffusion.enable(model, method, **KEPT[method]) as handle, handle.run(total_steps=4) as run:
        for step, cache in enumerate(caches[:3]):
            run.step(step)
            with torch.no_grad():
                sample, none, handed_on, number, flag = model(first + step, cache, float(step))
            assert (none, number, flag) == (None, 7, True)
            assert handed_on[0]["keys"] is cache[0]["keys"]
            assert handed_on[0]["values"] is cache[0]["values"]
    summary = handle.summary()
    assert 2 not in summary.evaluated
    assert summary.history_bytes <= 4 * first.nbytes
    last = 2 * first if method == "reuse" else (2 * (first + 1) + 1) + 1  # v − x = x + t, of step 1
    assert torch.equal(sample, last)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("name", ["Cosmos3OmniTransformer", "LTX2VideoTransformer3DModel", "ZImageTransformer2DModel"])
def test_outputs_with_none_and_lists_are_replayed_whole(name: str, return_dict: bool) -> None:
    entry = ZOO[name]
    if not entry.available:
        pytest.skip("not in this diffusers")
    model = entry.build()
    call = {**entry.inputs(), "return_dict": return_dict}
    with torch.no_grad():
        plain = model(**call)
        with spectrum_diffusion.enable(model, "reuse", evaluated=[0], site="output") as handle:
            with handle.run(total_steps=2) as run:
                outputs = [(run.step(step), model(**call))[1] for step in range(2)]
    assert handle.summary().evaluated == [0]
    for output in outputs:
        assert type(output) is type(plain)
        torch.testing.assert_close(output, plain, rtol=0, atol=0)


def test_none_in_a_modules_output_is_no_gap() -> None:
    """Attention modules may answer (x, None) too."""
    call = Arguments(lambda: None, (torch.zeros(2),), {}, nn.Identity())
    feature, frame = Frame.of(call, (torch.ones(2), None, [torch.ones(3), None]))
    first, none, (second, other) = frame.filled(call, iter([tensor * 5 for tensor in feature]))
    assert (none, other) == (None, None)
    assert (first.tolist(), second.tolist()) == ([5.0] * 2, [5.0] * 3)


def test_a_sample_that_the_model_writes_into_is_the_feature() -> None:
    class InPlace(nn.Module):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return hidden_states.add_(1)

    model = InPlace().eval()
    with spectrum_diffusion.enable(model, "reuse", evaluated=[0], site="output") as handle, torch.no_grad():
        with handle.run(total_steps=2) as run:
            outputs = [(run.step(step), model(torch.full((2,), 10.0 * step)))[1].tolist() for step in range(2)]
    assert outputs == [[1.0, 1.0], [1.0, 1.0]]
