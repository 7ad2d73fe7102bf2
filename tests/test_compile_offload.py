"""Compiled blocks and offloaded weights: a skipped block is skipped outside of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from torch._dynamo.utils import counters

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError

METHODS = [
    ("paper", {"warmup": 2}),
    ("taylor", {"order": 1, "warmup": 2}),
    ("reuse", {"warmup": 2}),
    ("fora", {"site": "last_block"}),
    ("taylorseer", {"site": "last_block", "interval": 3, "warmup": 2}),
]
COMPILED = [METHODS[0], *METHODS[3:]]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("enable_first", [False, True])
@pytest.mark.parametrize("name", ["flux", "qwen-image", "wan", "hunyuan-video"])
@pytest.mark.parametrize(("method", "options"), COMPILED)
def test_compiled_blocks_neither_break_nor_recompile(
    method: str, options: dict[str, Any], name: str, enable_first: bool
) -> None:
    entry = PIPELINES[name]
    expected_pipe = entry.build()
    with spectrum_diffusion.enable(expected_pipe, method, **options) as handle:
        expected = entry.call(expected_pipe, steps=10)
        evaluated = handle.summary().evaluated
    skipped = next(step for step in range(10) if step not in evaluated)
    pipe = entry.build()
    if enable_first:
        spectrum_diffusion.enable(pipe, method, **options)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    if not enable_first:
        spectrum_diffusion.enable(pipe, method, **options)
    seen: list[tuple[str, int]] = []

    def watch(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append((f"step {step}", counters["stats"]["unique_graphs"]))
        return kwargs

    compiled = entry.call(pipe, steps=10, callback_on_step_end=watch)
    assert torch.allclose(compiled, expected, atol=1e-5, rtol=1e-5)
    graphs = [count for _, count in seen]
    assert graphs[0] > 0, "the blocks were not compiled"
    later = graphs[skipped:]
    assert later == [later[0]] * len(later), f"recompiled after the first skipped step: {seen}"
    assert sum(counters["graph_break"].values()) == 0
    spectrum_diffusion.disable(pipe)
    assert all(
        not isinstance(module.__dict__.get("_compiled_call_impl"), spectrum_diffusion.sites.interceptor.Interceptor)
        for module in pipe.transformer.modules()
    )
    assert torch.isfinite(entry.call(pipe, steps=4)).all()


def test_modules_inside_compiled_blocks_are_refused() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with pytest.raises(UnsupportedModelError, match=r'blocks of transformer are compiled.*site="last_block"'):
        spectrum_diffusion.enable(pipe, "fora")


def test_model_compiled_as_a_whole_is_refused_at_the_last_block_and_works_at_the_output() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "paper", site="output", warmup=2):
        expected = entry.call(pipe, steps=10)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(UnsupportedModelError, match=r'compiled as a whole.*site="output"'):
        spectrum_diffusion.enable(pipe, "paper")
    with spectrum_diffusion.enable(pipe, "paper", site="output", warmup=2) as handle:
        assert torch.allclose(entry.call(pipe, steps=10), expected, atol=1e-5, rtol=1e-5)
        assert handle.summary().nfe == len(handle.method.schedule(10)) < 10


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_group_offload_moves_no_block_on_a_skipped_step(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.hooks import apply_group_offloading, group_offloading

    entry = PIPELINES["flux"]
    plain = entry.build()
    with spectrum_diffusion.enable(plain, method, **options):
        expected = entry.call(plain, steps=10)
    pipe = entry.build()
    moved: list[str] = []
    onload = group_offloading.ModuleGroup.onload_

    def counted(self: Any) -> None:
        moved.extend(type(module).__name__ for module in self.modules)
        onload(self)

    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", counted)
    cpu = torch.device("cpu")
    apply_group_offloading(
        pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=1, use_stream=False
    )
    by_step: dict[int, list[str]] = {}

    def note(step: int, *_: Any) -> None:
        by_step[step] = [name for name in moved if "Block" in name]
        moved.clear()

    with spectrum_diffusion.enable(pipe, method, on_step=note, **options) as handle:
        assert torch.allclose(entry.call(pipe, steps=10), expected, atol=1e-6)
        evaluated = handle.summary().evaluated
    for step, blocks in by_step.items():
        assert bool(blocks) == (step in evaluated), f"step {step} moved {blocks}"


def test_fewer_steps_run_on_a_denoiser_that_is_compiled_whole() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2) as handle:
        entry.call(pipe, steps=10)
    assert handle.summary().steps == handle.summary().nfe == 5
