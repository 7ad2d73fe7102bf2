"""Train a denoiser together with its text encoders, then distil guidance if it has a guidance embedding.

A model is an ``nn.Module`` called as ``model(noisy, times, guidance, prompts)``. A model without a guidance embedding
ignores `guidance` (B,).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from training.optim import OptimConfig, Trainer, make_optimizers
from training.process import FlowMatching, Process, spread

# Token ids of prompts, int64 (..., tokens), one tensor for each of the model's tokenizers.
Prompts = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class DenoiserConfig:
    """Training settings of any denoiser."""

    process: Process = field(default_factory=lambda: FlowMatching(shift=1.6))
    empty_prompts: float = 0.1
    prompts: int = 24  # wordings per combination of subject and background
    seed: int = 2
    compile: bool = True
    bfloat16: bool = True  # three times faster for matrices, but slower for gradients of convolutions
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=5700, batch=64, rate=2e-3, average=0.9985))


@dataclass(frozen=True)
class DistilConfig:
    """Settings of guidance distillation: the largest w, and the teacher's share of the target."""

    largest: float = 4.0
    teacher: float = 0.5
    seed: int = 3
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=600, batch=64, rate=6e-4, average=0.99, warmup=30)
    )


@dataclass(frozen=True)
class TrainingData:
    """What batches are drawn from.

    Attributes:
        latents: normalised, in the denoiser's input shape, float32 (N, …).
        shown: what they show, an int64 (N,) index into each leading dimension of the prompts: subject, background, …
        prompts: (subjects, backgrounds, …, forms, tokens).
        empty: the empty prompt, (tokens,).
    """

    latents: torch.Tensor
    shown: tuple[torch.Tensor, ...]
    prompts: Prompts
    empty: Prompts


@dataclass(frozen=True)
class Batch:
    """A batch; `prompts` are (B, tokens), some of them empty."""

    noisy: torch.Tensor
    target: torch.Tensor
    times: torch.Tensor
    prompts: Prompts


def zero_outputs(transformer: nn.Module) -> None:
    """Zero the gates and the last projection, so that the blocks start as identities."""
    for name, parameter in transformer.named_parameters():
        if _is_modulation(name) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)


def _is_modulation(name: str) -> bool:
    return (".linear." in name and "norm" in name) or "time_proj." in name or "scale_shift_table" in name


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside blocks, which Muon trains, and all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = "blocks." in name or "layers." in name or ".block." in name
        hidden = in_block and parameter.ndim == 2 and not _is_modulation(name) and "bias" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


def draw_batch(data: TrainingData, size: int, config: DenoiserConfig, seed: int, empty: float) -> Batch:
    """A seeded batch of `size`; a share `empty` of it has the empty prompt."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(data.latents), (size,), generator=generator)
    form = torch.randint(config.prompts, (size,), generator=generator)
    where = (*(column[index] for column in data.shown), form)
    silent = (torch.rand(size, generator=generator) < empty)[:, None]
    prompts = tuple(
        torch.where(silent, nothing, tokens[where]) for nothing, tokens in zip(data.empty, data.prompts, strict=True)
    )
    even = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    times = config.process.times(even)
    latents = data.latents[index]
    noise = torch.randn(latents.shape, generator=generator)
    noisy = config.process.noisy(latents, noise, times)
    return Batch(noisy, config.process.target(latents, noise), times, prompts)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention in plain operations inside the block: for 100 tokens on a CPU its gradient is much faster."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: object,
    ) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -1e4, dtype=scores.dtype).triu(1)
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            added = torch.where(attn_mask, 0.0, -1e4) if boolean else attn_mask
            scores = scores + added.to(scores.dtype)
        return scores.softmax(-1) @ value

    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def train_denoiser(model: nn.Module, data: TrainingData, config: DenoiserConfig, folder: Path) -> None:
    """Train on noisy latents; at the end `model` has its averaged weights."""
    size = config.optim.batch
    trainer = _trainer("denoiser", model, config.optim, folder)
    forward = _compiled(model, config)
    ones = torch.ones(size)

    def loss_at(step: int) -> torch.Tensor:
        batch = draw_batch(data, size, config, config.seed * 1_000_003 + step, config.empty_prompts)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            output = forward(batch.noisy, batch.times, ones, batch.prompts)
        return config.process.loss(output.float(), batch.target, batch.times)

    with plain_attention():
        trainer.run(loss_at)
    trainer.average.copy_to(model)


def distil_guidance(
    model: nn.Module, data: TrainingData, denoiser: DenoiserConfig, config: DistilConfig, folder: Path
) -> None:
    """Train the guidance embedding to give what classifier-free guidance with a frozen copy gives."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    size = config.optim.batch
    trainer = _trainer("distil", model, config.optim, folder)
    student, frozen = _compiled(model, denoiser), _compiled(teacher, denoiser)
    ones = torch.ones(size)
    empty = tuple(tokens.expand(size, -1) for tokens in data.empty)

    def loss_at(step: int) -> torch.Tensor:
        seed = config.seed * 1_000_003 + step
        batch = draw_batch(data, size, denoiser, seed, 0.0)
        w = 1 + (config.largest - 1) * torch.rand(size, generator=torch.Generator().manual_seed(seed + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=denoiser.bfloat16):
            with torch.no_grad():
                conditional = frozen(batch.noisy, batch.times, ones, batch.prompts).float()
                unconditional = frozen(batch.noisy, batch.times, ones, empty).float()
            output = student(batch.noisy, batch.times, w, batch.prompts)
        base = config.teacher * conditional + (1 - config.teacher) * batch.target
        target = base + spread(w - 1, conditional) * (conditional - unconditional)
        return denoiser.process.loss(output.float(), target, batch.times)

    with plain_attention():
        trainer.run(loss_at)
    trainer.average.copy_to(model)


def _trainer(name: str, model: nn.Module, config: OptimConfig, folder: Path) -> Trainer:
    return Trainer(name, model, make_optimizers(*split_parameters(model), config), config, folder)


def _compiled(model: nn.Module, config: DenoiserConfig) -> Callable[..., Any]:
    return torch.compile(model, dynamic=False) if config.compile else model
