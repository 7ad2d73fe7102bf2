"""What one tiny pipeline is: how it is built, called, and how many steps and denoiser calls it has."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """What the pipelines around one denoiser class share: its parts, its conditioning and its block tail."""

    parts: Callable[[], dict[str, Any]]
    inputs: Mapping[str, Any]
    tail: str
    denoisers: tuple[str, ...] = ("transformer",)


@dataclass(frozen=True)
class PipelineEntry:
    """One pipeline: `build` makes it, `call` runs it and returns its latents.

    `arguments` go to every call, `settings` to the pipeline's constructor. `branches` is the largest number
    of denoiser calls inside one step, `total` the number of steps (entries of the call's timesteps) that a
    wanted `num_inference_steps` becomes, `stochastic` whether the scheduler draws noise.
    """

    pipeline: Callable[..., Any]
    family: Family
    scheduler: Callable[[], Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    branches: int = 1
    total: Callable[[int], int] = lambda steps: steps
    stochastic: bool = False

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Names of the pipeline's components that are denoisers, in the order in which they take over."""
        return self.family.denoisers

    @property
    def tail(self) -> str:
        """Name of the denoiser's module that follows its last block."""
        return self.family.tail

    def build(self) -> Any:
        """A new pipeline; two builds are equal bit for bit."""
        with _seeded(0):
            parts = self.family.parts()
            for name in self.denoisers:
                _awaken(parts[name].eval())
        pipe = self.pipeline(**parts, **self.settings, scheduler=self.scheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, *, steps: int = 10, seed: int = 0, **overrides: Any) -> Tensor:
        """The latents of one generation; `overrides` go to the pipeline, a callback after the entry's own."""
        arguments = {**self.family.inputs, **self.arguments}
        if "callback_on_step_end" in overrides and "callback_on_step_end" in arguments:
            own, added = arguments["callback_on_step_end"], overrides["callback_on_step_end"]
            overrides["callback_on_step_end"] = _chain(own, added)
        arguments = {name: _copy(value) for name, value in (arguments | overrides).items()}
        generator = torch.Generator("cpu").manual_seed(seed)
        output = pipe(
            **{"num_inference_steps": steps, "generator": generator, "output_type": "latent", **arguments},
            return_dict=False,
        )
        return output[0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _awaken(model: nn.Module) -> None:
    """Give all-zero parameters small values: a zero projection would hide what the blocks compute."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _chain(first: Callable[..., dict[str, Any]], second: Callable[..., dict[str, Any]]) -> Callable[..., dict]:
    """A callback that calls both, the second with what the first has changed."""

    def chained(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed = tensors | first(pipe, step, timestep, tensors)
        return changed | second(pipe, step, timestep, changed)

    return chained
