"""Pipelines that store attention maps or activations inside skipped blocks are refused; everybody else is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.semantic_stable_diffusion.pipeline_semantic_stable_diffusion import (
    SemanticStableDiffusionPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import StableDiffusionAttendAndExcitePipeline
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import StableDiffusionSAGPipeline
from PIL import Image
from pipelines import PIPELINES
from pipelines.schedulers import ddim
from tiny_clip import TOKENS, save_tiny_clip
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import SpectrumError, UnsupportedModelError

STEPS = 8
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("paper", {}),
    ("paper", {"site": "output"}),
    ("deepcache", {}),
    ("spectrum", {"site": "sampler", "evaluated": [0, 1, 3, 5]}),
]
every_site = pytest.mark.parametrize(("method", "options"), METHODS, ids=["last_block", "output", "deep", "sampler"])
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


def edited(folder: Path, kind: str) -> Callable[[Any], torch.Tensor]:
    """LEdits++: the image is inverted first, and an attention map is the mask of the edit."""
    parts = prompted(folder, kind)
    cls = diffusers.LEditsPPPipelineStableDiffusionXL if kind == "xl" else diffusers.LEditsPPPipelineStableDiffusion
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    checked = {} if kind == "xl" else {"requires_safety_checker": False, "safety_checker": None}

    def sample(enable: Any) -> torch.Tensor:
        pipe = cls(**parts, **checked, scheduler=scheduler, feature_extractor=None)
        image = Image.radial_gradient("L").convert("RGB").resize((32, 32))
        pipe.invert(image=image, num_inversion_steps=STEPS, skip=0.1, height=32, width=32)
        enable(pipe)
        return pipe(editing_prompt=["red apple"], use_cross_attn_mask=True, output_type="latent").images

    return sample


def prompted(folder: Path, kind: str = "sd15") -> dict[str, Any]:
    """The parts of a Stable Diffusion that reads prompts, with attention at the resolution of the edits' masks."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(TOKENS), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    text = CLIPTextConfig(**sizes, **tokens, projection_dim=16)
    tokenizer = CLIPTokenizer.from_pretrained(save_tiny_clip(folder))
    parts: dict[str, Any] = {"text_encoder": CLIPTextModel(text).eval(), "tokenizer": tokenizer}
    options: dict[str, Any] = {"cross_attention_dim": 16}
    if kind == "xl":
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(text).eval(), "tokenizer_2": tokenizer}
        sized = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16}
        options = {"cross_attention_dim": 32, "addition_embed_type": "text_time", **sized}
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
        **options,
    )
    return {**parts, "unet": unet.eval(), "vae": components()["vae"]}


@every_site
@pytest.mark.parametrize("kind", ["sag", "sd15", "xl"])
def test_attention_maps(kind: str, method: str, options: dict[str, Any], tmp_path: Path) -> None:
    sample = self_attention_guided() if kind == "sag" else edited(tmp_path, kind)
    name = "CrossAttnStoreProcessor" if kind == "sag" else "LEDITSCrossAttnProcessor"
    with pytest.raises(UnsupportedModelError, match=f"the attention processor {name} in unet stores activations"):
        sample(lambda pipe: spectrum_diffusion.enable(pipe, method, **options))
    evaluated = list(range(STEPS))  # nothing is skipped, so nothing is missing
    assert torch.isfinite(sample(lambda pipe: spectrum_diffusion.enable(pipe, "paper", evaluated=evaluated))).all()


@every_site
def test_guidance_by_gradients_is_refused(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    parts = {**prompted(tmp_path), "scheduler": ddim(), "safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    with spectrum_diffusion.enable(pipe, method, **options):
        with pytest.raises(SpectrumError, match=r"gradients enabled.*or to guide by gradients"):
            pipe("red apple", token_indices=[1], height=32, width=32, attn_res=(16, 16), num_inference_steps=STEPS)


@every_site
def test_an_edit_by_stored_attention_maps_and_gradients_is_refused(method: str, options: dict[str, Any]) -> None:
    taken = diffusers.StableDiffusionPix2PixZeroPipeline.__init__.__code__.co_varnames
    parts = {name: part for name, part in components(scheduler=ddim()).items() if name in taken}
    absent = dict.fromkeys(("inverse_scheduler", "caption_generator", "caption_processor"))
    pipe = diffusers.StableDiffusionPix2PixZeroPipeline(**parts, **absent, requires_safety_checker=False)
    embeds = {name: torch.randn(2, 6, 16) for name in ("source_embeds", "target_embeds")}
    call = {**PIPELINES["sd15"].family.inputs, **embeds, "num_inference_steps": STEPS, "output_type": "latent"}

    def sample() -> torch.Tensor:
        return pipe(**call, generator=torch.Generator().manual_seed(0)).images

    plain = sample()
    with spectrum_diffusion.enable(pipe, method, **options):
        with pytest.raises(UnsupportedModelError, match="the attention processor Pix2PixZeroAttnProcessor in unet"):
            sample()
    with spectrum_diffusion.enable(pipe, "paper", evaluated=range(STEPS)):
        with pytest.raises(SpectrumError, match=r"gradients enabled.*or to guide by gradients"):
            sample()
    assert torch.equal(sample(), plain)


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
    if options.get("site") not in ("output", "sampler"):
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


def with_perturbed_attention(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Processors that replace the attention, and store nothing."""
    layers = {"pag_applied_layers": ["mid_block"]}
    pipe = diffusers.StableDiffusionPAGPipeline(**components(), requires_safety_checker=False, **layers)
    return pipe, {**PIPELINES["sd15"].family.inputs, "pag_scale": 3.0}


def with_image_prompt(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Processors with weights of their own."""
    pipe = PIPELINES["sd15"].build()
    names = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    widths = [pipe.unet.get_submodule(name).to_k.out_features for name in names]
    weights = {f"{2 * i + 1}.to_{kind}_ip.weight": torch.randn(n, 16) for i, n in enumerate(widths) for kind in "kv"}
    projection = {"proj.weight": torch.randn(64, 16), "proj.bias": torch.zeros(64)}
    norm = {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection | norm, "ip_adapter": weights}])
    return pipe, {**PIPELINES["sd15"].family.inputs, "ip_adapter_image_embeds": [torch.randn(2, 1, 16)]}


def semantically_guided(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Further guidance branches, and nothing in processors."""
    parts = {**prompted(folder), "scheduler": ddim(), "safety_checker": None, "feature_extractor": None}
    pipe = SemanticStableDiffusionPipeline(**parts, requires_safety_checker=False)
    return pipe, {"prompt": "red apple", "editing_prompt": ["panda"], "edit_warmup_steps": 2, "height": 32, "width": 32}


@every_site
@pytest.mark.parametrize("build", [with_perturbed_attention, with_image_prompt, semantically_guided])
def test_guidance_that_stores_nothing_in_skipped_modules(
    build: Any, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe, call = build(tmp_path)
    call = {**call, "num_inference_steps": STEPS, "output_type": "latent"}

    def sample() -> torch.Tensor:
        return pipe(**call, generator=torch.Generator().manual_seed(0)).images

    plain = sample()
    if build is semantically_guided and options.get("site") == "sampler":
        with pytest.raises(UnsupportedModelError, match="its guidance remembers earlier outputs"):
            spectrum_diffusion.enable(pipe, method, **options)
        return
    with spectrum_diffusion.enable(pipe, method, **options) as handle:
        assert not torch.equal(sample(), plain)
        assert handle.summary().nfe < STEPS
        assert handle.summary().fallbacks == {}
    assert torch.equal(sample(), plain)
