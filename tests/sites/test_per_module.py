"""The methods that cache per module, against a second, slow writing of them.

All modules run at every step; plain forward hooks, put on modules that are named here one by one, replace their
outputs at steps that are not evaluated. TaylorSeer's differences are kept as tensors and updated in place, as its
paper has it. Steps are counted by the scheduler's `step`, branches by the order of a module's calls.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from algorithm1 import counted_steps
from pipelines import PIPELINES
from torch import Tensor, nn

import spectrum_diffusion

STEPS = 14
CACHED = {
    "flux": {"transformer_blocks": ("attn", "ff", "ff_context"), "single_transformer_blocks": ("proj_out",)},
    "flux-true-cfg": {"transformer_blocks": ("attn", "ff", "ff_context"), "single_transformer_blocks": ("proj_out",)},
    "sd3": {"transformer_blocks": ("attn", "ff", "ff_context")},
    "wan": {"blocks": ("attn1", "attn2", "ffn")},
    "hunyuan-video": {
        "transformer_blocks": ("attn", "ff", "ff_context"),
        "single_transformer_blocks": ("proj_out",),
    },
}
"""What each block keeps, by the papers: attention and feed-forward before the gate, a single block's fused output."""

Predict = Callable[["Differences", int], Tensor]


class Differences:
    """TaylorSeer's state of one tensor: the differences at the last evaluated step, made anew at the next."""

    def __init__(self, order: int, start: int) -> None:
        self.order, self.start, self.step = order, start, -1
        self.values: list[Tensor] = []

    def update(self, step: int, feature: Tensor) -> None:
        old, self.values = self.values, [feature.detach().double().clone()]
        if old and step >= self.start:
            for lower in old[: self.order]:
                self.values.append((self.values[-1] - lower) / (step - self.step))
        self.step = step


def powers(state: Differences, step: int) -> Tensor:
    k = step - state.step
    return sum(d * k**i / math.factorial(i) for i, d in enumerate(state.values))


def hermite(state: Differences, step: int) -> Tensor:
    sigma, k = 0.5, step - state.step
    total = torch.zeros_like(state.values[0])
    for i, d in enumerate(state.values):
        polynomial = np.polynomial.hermite.Hermite.basis(i)(sigma * k)
        total += d * sigma**i * polynomial / math.factorial(i)
    return total


class SlowCache:
    """Counts steps and calls, and replaces a module's outputs at the steps that are not evaluated."""

    def __init__(self, evaluated: Collection[int], order: int, start: int, predict: Predict) -> None:
        self.evaluated, self.predict = evaluated, predict
        self.step = 0
        self.calls: dict[nn.Module, int] = defaultdict(int)
        self.states: dict[Any, Differences] = defaultdict(lambda: Differences(order, start))

    def next_step(self) -> None:
        self.step += 1
        self.calls.clear()

    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        branch = self.calls[module]
        self.calls[module] += 1
        outputs = output if isinstance(output, tuple) else (output,)
        results = tuple(self._tensor((module, branch, i), value) for i, value in enumerate(outputs))
        return results if isinstance(output, tuple) else results[0]

    def _tensor(self, key: Any, value: Any) -> Any:
        if value is None:
            return None
        if self.step in self.evaluated:
            self.states[key].update(self.step, value)
            return value
        return self.predict(self.states[key], self.step).to(value.dtype)


@contextmanager
def slow(pipe: Any, name: str, cache: SlowCache) -> Iterator[None]:
    handles = [
        getattr(block, module).register_forward_hook(cache.hook)
        for stack, modules in CACHED[name].items()
        for block in getattr(pipe.transformer, stack)
        for module in modules
        if getattr(block, module, None) is not None
    ]
    try:
        with counted_steps(pipe.scheduler, cache.next_step):
            yield
    finally:
        for handle in handles:
            handle.remove()


METHODS = [
    ("fora", {}, 0, 0, powers),
    ("taylorseer", {"interval": 3, "warmup": 4}, 1, 3, powers),
    ("taylorseer", {"interval": 3, "warmup": 3, "order": 2}, 2, 2, powers),
    ("taylorseer", {"interval": 2, "warmup": 3, "slope": 0.5, "order": 3}, 3, 2, powers),
    ("hicache", {"interval": 3, "warmup": 3}, 2, 2, hermite),
]


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize(("method", "options", "order", "start", "predict"), METHODS)
def test_equal_to_the_slow_cache(
    name: str, method: str, options: dict[str, Any], order: int, start: int, predict: Predict
) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, method, **options) as handle:
        ours = entry.call(pipe, steps=STEPS)
        summary = handle.summary()
    cache = SlowCache(summary.evaluated, order, start, predict)
    with slow(pipe, name, cache):
        theirs = entry.call(pipe, steps=STEPS)
    assert summary.nfe < STEPS
    assert not summary.fallbacks
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=2e-4, atol=2e-5)
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    assert not torch.allclose(torch.as_tensor(ours), untouched, rtol=2e-4, atol=2e-5)


def inside(denoiser: nn.Module) -> nn.Module:
    """A module within the first attention or convolution, which runs once in every evaluation and never else."""
    stacks = ("transformer_blocks", "blocks", "down_blocks")
    block = next(getattr(denoiser, stack) for stack in stacks if hasattr(denoiser, stack))[0]
    return next(module for path, module in block.named_modules() if path.endswith(("to_q", "resnets.0.conv1")))


TABLE6 = [
    ("paper", {"slope": 0.75}, 14),
    ("paper", {"slope": 3.0}, 10),
    ("fora", {}, 13),
    ("fora", {"interval": 6}, 9),
    ("taylorseer", {}, 16),
    ("taylorseer", {"interval": 6}, 12),
    ("taylorseer", {"order": 2}, 16),
    ("taylorseer", {"interval": 6, "order": 2}, 12),
    ("taylorseer", {"site": "last_block", "interval": 8}, 10),
    ("paper", {"interval": 8, "slope": 0}, 10),
    ("taylor", {}, 14),
    ("taylor", {"slope": 3.0}, 10),
]


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan-video", "sdxl"])
@pytest.mark.parametrize(("method", "options", "nfe"), TABLE6)
def test_evaluations_of_table_6(name: str, method: str, options: dict[str, Any], nfe: int) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    ran: list[int] = []
    counter = inside(getattr(pipe, entry.denoisers[0])).register_forward_pre_hook(lambda *_: ran.append(1))
    with spectrum_diffusion.enable(pipe, method, **options) as handle:
        entry.call(pipe, steps=50)
        summary = handle.summary()
    counter.remove()
    assert summary.nfe == nfe
    assert summary.steps == 50
    assert len(ran) == nfe * len(summary.branches)
