"""What an entry of the zoo is: a denoiser class, a tiny configuration, and the arguments of one call of it.

A call's arguments are written as data: a plain value stands for itself, a maker (`noisy`, `cond`, `step` …)
is asked for its value at the call. What changes from step to step, the noisy sample and the time, depends on
the seed; what stays the same through a generation, the conditions, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

INIT_SEED = 0
INIT_STD = 0.05  # what zero-initialised projections get instead, so that the output depends on every feature
COND_SEED = 1_000_003


@dataclass
class Draw:
    """The randomness and the batch size of one call."""

    batch: int
    seed: int
    step_rng: torch.Generator = field(init=False)
    cond_rng: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.step_rng = torch.Generator().manual_seed(self.seed)
        self.cond_rng = torch.Generator().manual_seed(COND_SEED)


Maker = Callable[[Draw], Any]


def noisy(*shape: int) -> Maker:
    """A normal sample of shape (batch, *shape) that differs from step to step."""
    return lambda draw: torch.randn(draw.batch, *shape, generator=draw.step_rng)


def cond(*shape: int) -> Maker:
    """A normal condition of shape (batch, *shape), the same at every step."""
    return lambda draw: torch.randn(draw.batch, *shape, generator=draw.cond_rng)


def bare(*shape: int) -> Maker:
    """A normal condition without a batch dimension, the same at every step."""
    return lambda draw: torch.randn(*shape, generator=draw.cond_rng)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Maker:
    """Ones of shape (batch, *shape): masks."""
    return lambda draw: torch.ones(draw.batch, *shape, dtype=dtype)


def rows(*values: Any, dtype: torch.dtype = torch.float32) -> Maker:
    """One row of values, repeated over the batch."""
    return lambda draw: torch.tensor([list(values)] * draw.batch, dtype=dtype)


def step(*shape: int, scale: float = 1000.0, dtype: torch.dtype = torch.float32) -> Maker:
    """The time, from nearly `scale` at seed 0 downwards, of shape (batch, *shape)."""
    return lambda draw: torch.full((draw.batch, *shape), scale * (0.99 - draw.seed % 40 / 50)).to(dtype)


def whole_step(*shape: int) -> Maker:
    """The time as whole numbers below 1000, as the older schedulers give it."""
    return step(*shape, dtype=torch.long)


def unit_step(*shape: int) -> Maker:
    """The time in [0, 1]."""
    return step(*shape, scale=1.0)


def listed(maker: Maker) -> Maker:
    """A batch as a list of its members."""
    return lambda draw: list(maker(draw).unbind(0))


@dataclass(frozen=True)
class Entry:
    """One tiny denoiser: a class of diffusers by name, and the keyword arguments of its forward."""

    cls: str
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    variant: str = ""  # set for a second configuration of a class, that takes another way through its forward

    @property
    def name(self) -> str:
        return f"{self.cls}/{self.variant}" if self.variant else self.cls

    @property
    def available(self) -> bool:
        """Whether the installed diffusers has the class."""
        import diffusers

        return hasattr(diffusers, self.cls)

    def build(self) -> nn.Module:
        """The model: eval, float32, the same random weights every time."""
        import diffusers

        with torch.random.fork_rng(devices=[]), _uninitialized_is_nan():
            torch.manual_seed(INIT_SEED)
            model = getattr(diffusers, self.cls)(**self.config)
            _fill_unset(model)
        return model.eval().requires_grad_(False)

    def inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Any]:
        """The keyword arguments of one call; another seed gives another step of the same generation."""
        draw = Draw(batch, seed)
        return {key: value(draw) if callable(value) else value for key, value in self.call.items()}


@contextmanager
def _uninitialized_is_nan() -> Iterator[None]:
    """Fill the memory of ``torch.empty`` with NaN: some models leave parameters for their checkpoint to set."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _fill_unset(model: nn.Module) -> None:
    """Random values where a model starts with zeros or leaves memory uninitialized."""
    for parameter in model.parameters():
        if not parameter.any() or parameter.isnan().any():
            nn.init.normal_(parameter, std=INIT_STD)


def samples_of(output: Any) -> list[torch.Tensor]:
    """Every tensor of a denoiser's output (sample, audio, action …), in order, other members left out."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, list | tuple):
        return [tensor for member in output for tensor in samples_of(member)]
    return []


def sample_of(output: Any) -> torch.Tensor:
    """The tensor that the sampler uses: the first of a denoiser's output, whatever its class."""
    return samples_of(output)[0]
