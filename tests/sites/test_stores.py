"""Pipelines that store attention maps or activations inside skipped blocks are refused; everybody else is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import StableDiffusionSAGPipeline
from PIL import Image
from pipelines import PIPELINES
from pipelines.schedulers import ddim
from tiny_clip import TOKENS, save_tiny_clip
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError

STEPS = 8
METHODS: list[tuple[str, dict[str, Any]]] = [("paper", {}), ("paper", {"site": "output"}), ("deepcache", {})]
every_site = pytest.mark.parametrize(("method", "options"), METHODS, ids=["last_block", "output", "deep"])
pytestmark = pytest.mark.filterwarnings("ignore")


def components(**others: Any) -> dict[str, Any]:
    parts = {**PIPELINES["sd15"].build().components, **others}
    return {name: part for name, part in parts.items() if name != "image_encoder"}


def self_attention_guided() -> Callable[[Any], torch.Tensor]:
    inputs = PIPELINES["sd15"].family.inputs

    def sample(enable: Any) -> torch.Tensor:
        pipe = StableDiffusionSAGPipeline(**components(scheduler=ddim()), requires_safety_checker=False)
        enable(pipe)
        size = {"height": 16, "width": 16}
        return pipe(**inputs | size, num_inference_steps=STEPS, output_type="latent").images

    return sample


def edited(folder: Path) -> Callable[[Any], torch.Tensor]:
    """LEdits++: the image is inverted first, and an attention map is the mask of the edit."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(save_tiny_clip(folder))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(TOKENS), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}

    def sample(enable: Any) -> torch.Tensor:
        unet = diffusers.UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=2,
        ).eval()
        text = {"text_encoder": CLIPTextModel(CLIPTextConfig(**sizes, **tokens)).eval(), "tokenizer": tokenizer}
        scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
        parts = components(**text, unet=unet, scheduler=scheduler)
        pipe = diffusers.LEditsPPPipelineStableDiffusion(**parts, requires_safety_checker=False)
        image = Image.radial_gradient("L").convert("RGB").resize((32, 32))
        pipe.invert(image=image, num_inversion_steps=STEPS, skip=0.1, height=32, width=32)
        enable(pipe)
        return pipe(editing_prompt=["red apple"], use_cross_attn_mask=True, output_type="latent").images

    return sample


@every_site
@pytest.mark.parametrize("name", ["CrossAttnStoreProcessor", "LEDITSCrossAttnProcessor"])
def test_attention_maps(name: str, method: str, options: dict[str, Any], tmp_path: Path) -> None:
    sample = edited(tmp_path) if name.startswith("LEDITS") else self_attention_guided()
    with pytest.raises(UnsupportedModelError, match=f"the attention processor {name} in unet stores activations"):
        sample(lambda pipe: spectrum_diffusion.enable(pipe, method, **options))
    evaluated = list(range(STEPS))  # nothing is skipped, so nothing is missing
    assert torch.isfinite(sample(lambda pipe: spectrum_diffusion.enable(pipe, "paper", evaluated=evaluated))).all()


class Keeper:
    """Hooks that keep what they see in different ways."""

    def __init__(self) -> None:
        self.kept: dict[str, list[torch.Tensor]] = {}
        self.count, self.norms = 0, [0.0]
        self.buffer = torch.zeros(())

    def method(self, module: nn.Module, args: Any, output: Any) -> None:
        self.kept.setdefault("outputs", []).append(output)

    def closure(self) -> Callable[..., None]:
        kept = self.kept

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept["array"] = [output.detach().numpy()]

        return hook

    def in_place(self, module: nn.Module, args: Any, output: Any) -> None:
        self.buffer += output.mean()

    def counting(self, module: nn.Module, args: Any, output: Any) -> None:
        self.count += 1
        self.norms.append(float(output.norm()))


@pytest.mark.parametrize("kind", ["method", "closure", "in_place"])
@every_site
def test_a_forward_hook_that_stores(method: str, options: dict[str, Any], kind: str) -> None:
    entry, keeper = PIPELINES["sd15"], Keeper()
    pipe = entry.build()
    hook = keeper.closure() if kind == "closure" else getattr(keeper, kind)
    pipe.unet.mid_block.resnets[0].register_forward_hook(hook)
    spectrum_diffusion.enable(pipe, method, **options)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"the forward hook .* of ResnetBlock2D in unet stores"):
            entry.call(pipe, steps=STEPS)
    spectrum_diffusion.disable(pipe)
    entry.call(pipe, steps=STEPS)


@every_site
def test_a_hook_that_counts_and_a_hook_outside_the_skipped_blocks(method: str, options: dict[str, Any]) -> None:
    entry, keeper = PIPELINES["sd15"], Keeper()
    plain, pipe = entry.build(), entry.build()
    pipe.unet.mid_block.resnets[0].register_forward_hook(keeper.counting)
    if options.get("site") != "output":
        pipe.unet.conv_norm_out.register_forward_hook(Keeper().method)
    for each in (plain, pipe):
        spectrum_diffusion.enable(each, method, **options)
    assert torch.equal(entry.call(pipe, steps=STEPS), entry.call(plain, steps=STEPS))
    assert 0 < keeper.count < STEPS + 1


class Stateless:
    """A processor of one's own, which only computes."""

    def __init__(self) -> None:
        self.scale, self.calls = torch.ones(()), 0
        self.inner = diffusers.models.attention_processor.AttnProcessor()

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return self.inner(attn, hidden_states, *args, **kwargs) * self.scale


@every_site
def test_a_processor_of_ones_own_that_stores_nothing(method: str, options: dict[str, Any]) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.unet.set_attn_processor(Stateless())
    handle = spectrum_diffusion.enable(pipe, method, **options)
    entry.call(pipe, steps=STEPS)
    assert handle.summary().nfe < STEPS
