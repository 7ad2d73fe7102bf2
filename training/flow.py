"""Flow matching, then guidance distillation, of a tiny FLUX with its text encoders."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training.concepts import BACKGROUNDS, Subject, prompt
from training.optim import OptimConfig, Trainer, make_optimizers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the transformer and how it is trained."""

    heads: int = 5
    head_width: int = 32
    rope: tuple[int, int, int] = (8, 12, 12)
    double_blocks: int = 2
    single_blocks: int = 4
    shift: float = 1.6  # what FLUX.1-dev's schedule gives for 64 tokens
    empty_prompts: float = 0.1
    prompts: int = 24  # forms kept per subject and background
    seed: int = 2
    compile: bool = True
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=5700, batch=64, rate=2e-3, average=0.9985))


@dataclass(frozen=True)
class DistilConfig:
    """How guidance is taught: the range of w, and the share of the teacher's prediction in the target."""

    largest: float = 4.0
    teacher: float = 0.5
    seed: int = 3
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=600, batch=64, rate=6e-4, average=0.99, warmup=30)
    )


@dataclass(frozen=True)
class Prompts:
    """Token numbers of prompts: int64 (..., 16) for either encoder."""

    clip: torch.Tensor
    t5: torch.Tensor


@dataclass(frozen=True)
class FlowData:
    """All that a step draws from.

    Attributes:
        latents: normalised and packed as FluxPipeline packs them, float32 (N, 64, 4·C).
        subject, background: what they show, int64 (N,).
        prompts: (subjects, backgrounds, forms, 16).
        empty: the prompt that says nothing, (16,).
    """

    latents: torch.Tensor
    subject: torch.Tensor
    background: torch.Tensor
    prompts: Prompts
    empty: Prompts


class TinyFlux(nn.Module):
    """Transformer and text encoders as one model, since they learn together."""

    def __init__(self, transformer: FluxTransformer2DModel, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.transformer, self.clip, self.t5 = transformer, clip, t5
        side = 8
        grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
        self.register_buffer("img_ids", torch.cat([torch.zeros(side * side, 1), grid], dim=1), persistent=False)
        tokens = clip.config.max_position_embeddings
        self.register_buffer("txt_ids", torch.zeros(tokens, 3), persistent=False)

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, guidance: torch.Tensor, prompts: Prompts
    ) -> torch.Tensor:
        """The velocity noise − data at `noisy` (B, 64, D), for `sigma` and `guidance` (B,)."""
        return self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            guidance=guidance,
            pooled_projections=self.clip(prompts.clip).pooler_output,
            encoder_hidden_states=self.t5(prompts.t5)[0],
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0]


def make_transformer(channels: int, text_width: int, pooled_width: int, config: FlowConfig) -> FluxTransformer2DModel:
    """An untrained transformer whose blocks do nothing yet: gates and the last projection start at zero."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        attention_head_dim=config.head_width,
        num_attention_heads=config.heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        guidance_embeds=True,
        axes_dims_rope=config.rope,
    )
    for name, parameter in transformer.named_parameters():
        if _is_modulation(name) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
    return transformer


def _is_modulation(name: str) -> bool:
    return ".linear." in name and "norm" in name


def split_parameters(model: TinyFlux) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside blocks, which Muon takes, and all others."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        in_block = "blocks." in name or "layers." in name or ".block." in name
        hidden = in_block and parameter.ndim == 2 and not _is_modulation(name) and "bias" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(N, C, 16, 16) to (N, 64, 4·C), two by two, in the order of FluxPipeline."""
    n, c, h, w = latents.shape
    patches = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)  # (N, 8, 8, C, 2, 2)
    return patches.reshape(n, h * w // 4, 4 * c)


def tokenize(texts: list[str], clip: CLIPTokenizer, t5: T5TokenizerFast, tokens: int) -> Prompts:
    """Token numbers of `texts`, cut and padded as the pipeline does it."""

    def ids(tokenizer: CLIPTokenizer | T5TokenizerFast) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids

    return Prompts(ids(clip), ids(t5))


def all_prompts(subjects: list[Subject], forms: int, tokenizer: Callable[[list[str]], Prompts], seed: int) -> Prompts:
    """`forms` seeded ways to ask for everything: tokens (subjects, backgrounds, forms, 16)."""
    rng = np.random.default_rng(seed)
    texts = [prompt(subject, name, rng) for subject in subjects for name in BACKGROUNDS for _ in range(forms)]
    flat = tokenizer(texts)
    shape = (len(subjects), len(BACKGROUNDS), forms, -1)
    return Prompts(flat.clip.view(shape), flat.t5.view(shape))


@dataclass(frozen=True)
class Batch:
    """One step's draw: clean latents, noise, σ (B,), and prompts, some of them empty."""

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    prompts: Prompts

    @property
    def noisy(self) -> torch.Tensor:
        """The point at σ on the line from the latents to the noise."""
        return self.latents + self.sigma[:, None, None] * self.velocity

    @property
    def velocity(self) -> torch.Tensor:
        """What the model learns to tell: noise − latents."""
        return self.noise - self.latents


def draw_batch(data: FlowData, size: int, config: FlowConfig, seed: int, empty: float) -> Batch:
    """A seeded draw; σ is logit-normal, spread evenly over the batch, shifted as the sampler's are."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(data.latents), (size,), generator=generator)
    form = torch.randint(config.prompts, (size,), generator=generator)
    where = (data.subject[index], data.background[index], form)
    silent = (torch.rand(size, generator=generator) < empty)[:, None]
    prompts = Prompts(
        torch.where(silent, data.empty.clip, data.prompts.clip[where]),
        torch.where(silent, data.empty.t5, data.prompts.t5[where]),
    )
    even = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    sigma = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    sigma = config.shift * sigma / (1 + (config.shift - 1) * sigma)
    latents = data.latents[index]
    return Batch(latents, torch.randn(latents.shape, generator=generator), sigma, prompts)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention written out while it lasts: for 80 tokens on a CPU its gradient is many times faster."""

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


def train_flow(model: TinyFlux, data: FlowData, config: FlowConfig, folder: Path) -> Trainer:
    """Flow matching; `model` ends as the average of its weights."""
    trainer = Trainer("flow", model, make_optimizers(*split_parameters(model), config.optim), config.optim, folder)
    forward = torch.compile(model, dynamic=False) if config.compile else model
    ones = torch.ones(config.optim.batch)

    def loss_at(step: int) -> torch.Tensor:
        batch = draw_batch(data, config.optim.batch, config, config.seed * 1_000_003 + step, config.empty_prompts)
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(batch.noisy, batch.sigma, ones, batch.prompts)
        return functional.mse_loss(output.float(), batch.velocity)

    with plain_attention():
        trainer.run(loss_at)
    trainer.average.copy_to(model)
    return trainer


def distil_guidance(model: TinyFlux, data: FlowData, flow: FlowConfig, config: DistilConfig, folder: Path) -> Trainer:
    """Teach the guidance embedding what classifier-free guidance of a frozen copy gives."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    size = config.optim.batch
    trainer = Trainer("distil", model, make_optimizers(*split_parameters(model), config.optim), config.optim, folder)
    compiled = (lambda m: torch.compile(m, dynamic=False)) if flow.compile else (lambda m: m)
    student, frozen = compiled(model), compiled(teacher)
    ones = torch.ones(size)
    silence = Prompts(data.empty.clip.expand(size, -1), data.empty.t5.expand(size, -1))

    def loss_at(step: int) -> torch.Tensor:
        seed = config.seed * 1_000_003 + step
        batch = draw_batch(data, size, flow, seed, 0.0)
        w = 1 + (config.largest - 1) * torch.rand(size, generator=torch.Generator().manual_seed(seed + 1))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                told = frozen(batch.noisy, batch.sigma, ones, batch.prompts).float()
                silent = frozen(batch.noisy, batch.sigma, ones, silence).float()
            output = student(batch.noisy, batch.sigma, w, batch.prompts)
        base = config.teacher * told + (1 - config.teacher) * batch.velocity
        target = base + (w - 1)[:, None, None] * (told - silent)
        return functional.mse_loss(output.float(), target)

    with plain_attention():
        trainer.run(loss_at)
    trainer.average.copy_to(model)
    return trainer
