"""Pipelines that sample in stages, from tiny configurations: each stage reads its own scheduler."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers_suite.hub import clip_tokenizer
from pipelines import PIPELINES
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")

WIDTH = 16


def beside(cls: type) -> Any:
    """The module of a class, which diffusers moves from release to release."""
    return sys.modules[cls.__module__]


def text_encoder(cls: Any = CLIPTextModelWithProjection) -> Any:
    size = {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return cls(CLIPTextConfig(vocab_size=1000, num_attention_heads=2, **size, **special))


def prior() -> Any:
    model = d.PriorTransformer(num_attention_heads=2, attention_head_dim=8, embedding_dim=WIDTH, num_layers=2)
    nn.init.ones_(model.clip_std)
    return model


def prior_scheduler() -> Any:
    return d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0)


def unet(**options: Any) -> Any:
    blocks: dict[str, Any] = {"down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")}
    blocks["up_block_types"] = ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
    blocks["mid_block_type"] = "UNetMidBlock2DSimpleCrossAttn"
    size = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
    return d.UNet2DConditionModel(**{**blocks, **size, "cross_attention_dim": WIDTH, "sample_size": 8, **options})


def kandinsky() -> Any:
    """A prior of its own scheduler, and a decoder whose pipeline the combined one calls."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    pipe = d.KandinskyV22CombinedPipeline(
        unet=unet(
            out_channels=8, addition_embed_type="image", encoder_hid_dim=WIDTH, encoder_hid_dim_type="image_proj"
        ),
        scheduler=d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        movq=d.VQModel(block_out_channels=(32,), latent_channels=4, norm_type="spatial"),
        prior_prior=prior(),
        prior_image_encoder=CLIPVisionModelWithProjection(vision),
        prior_text_encoder=text_encoder(),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=prior_scheduler(),
        prior_image_processor=None,
    )
    return pipe


def call_combined(size: int, pipe: Any, steps: list[int], generator: torch.Generator) -> torch.Tensor:
    """A prior and a decoder in one call, each with its own number of steps."""
    prior_steps, decoder_steps = steps
    return pipe(
        "horse",
        prior_num_inference_steps=prior_steps,
        num_inference_steps=decoder_steps,
        height=size,
        width=size,
        generator=generator,
        output_type="latent",
    ).images


def unclip() -> Any:
    """Three stages in one pipeline, which has no scheduler of the usual name."""
    upscaler = {
        "in_channels": 6,
        "out_channels": 3,
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 1,
    }
    return d.UnCLIPPipeline(
        prior=prior(),
        decoder=unet(in_channels=3, out_channels=6, class_embed_type="identity"),
        text_encoder=text_encoder(),
        tokenizer=clip_tokenizer(),
        text_proj=beside(d.UnCLIPPipeline).UnCLIPTextProjModel(
            clip_embeddings_dim=WIDTH, time_embed_dim=32, cross_attention_dim=WIDTH
        ),
        super_res_first=d.UNet2DModel(**upscaler),
        super_res_last=d.UNet2DModel(**upscaler),
        prior_scheduler=prior_scheduler(),
        decoder_scheduler=d.UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=d.UnCLIPScheduler(variance_type="fixed_small_log"),
    )


def call_unclip(pipe: Any, steps: list[int], generator: torch.Generator) -> torch.Tensor:
    prior_steps, decoder_steps, upscaler_steps = steps
    images = pipe(
        "horse",
        prior_num_inference_steps=prior_steps,
        decoder_num_inference_steps=decoder_steps,
        super_res_num_inference_steps=upscaler_steps,
        generator=generator,
        output_type="np",
    ).images
    return torch.as_tensor(images)


def stable_unclip() -> Any:
    """A scheduler that only adds noise to the embedding, beside those of the prior and the denoiser."""
    return d.StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=text_encoder(),
        prior=prior(),
        prior_scheduler=d.DDPMScheduler(prediction_type="sample", clip_sample_range=5.0),
        image_normalizer=beside(d.StableUnCLIPPipeline).StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=text_encoder(CLIPTextModel),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=d.EulerDiscreteScheduler(),
        vae=d.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
    )


def call_stable_unclip(pipe: Any, steps: list[int], generator: torch.Generator) -> torch.Tensor:
    prior_steps, decoder_steps = steps
    return pipe(
        "horse",
        prior_num_inference_steps=prior_steps,
        num_inference_steps=decoder_steps,
        generator=generator,
        output_type="latent",
    ).images


def wuerstchen() -> Any:
    """A prior and a decoder without step indices: their schedulers tell the step by the timestep alone."""
    deprecated = beside(d.WuerstchenDecoderPipeline)
    pipe = d.WuerstchenCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=text_encoder(CLIPTextModel),
        decoder=deprecated.WuerstchenDiffNeXt(
            c_cond=WIDTH,
            c_hidden=[8],
            nhead=[-1],
            blocks=[2],
            level_config=["CT"],
            inject_effnet=[False],
            effnet_embd=WIDTH,
            clip_embd=WIDTH,
        ),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=None,
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=text_encoder(CLIPTextModel),
        prior_prior=beside(d.WuerstchenPriorPipeline).WuerstchenPrior(c=8, c_cond=WIDTH, depth=2, nhead=2),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
    )
    return pipe


Staged = tuple[Callable[[], Any], Callable[[Any, list[int], torch.Generator], torch.Tensor], list[str]]

STAGED: dict[str, Staged] = {
    "kandinsky": (kandinsky, partial(call_combined, 64), ["prior_prior", "unet"]),
    "unclip": (unclip, call_unclip, ["prior", "decoder", "super_res_first"]),
    "stable-unclip": (stable_unclip, call_stable_unclip, ["prior", "unet"]),
    "wuerstchen": (wuerstchen, partial(call_combined, 128), ["prior_prior", "decoder"]),
}
"""How each pipeline is built and called, and the first denoiser of each stage."""

every_pipeline = pytest.mark.parametrize("name", STAGED)


def build(name: str) -> tuple[Any, Callable[[list[int]], torch.Tensor]]:
    create, call, _ = STAGED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = create()
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    for owner in (pipe, *(value for value in vars(pipe).values() if isinstance(value, d.DiffusionPipeline))):
        owner._progress_bar_config = {"disable": True}
    return pipe, lambda steps: call(pipe, steps, torch.Generator().manual_seed(0))


@every_pipeline
def test_each_stage_has_its_own_steps_and_summary(name: str) -> None:
    pipe, sample = build(name)
    stages = STAGED[name][2]
    plain = sample([6, 9, 7][: len(stages)])
    site = {"site": "output"} if name == "wuerstchen" else {}  # its denoisers have no row
    with spectrum_diffusion.enable(pipe, "reuse", interval=3, warmup=2, slope=0, **site) as handle:
        for steps in ([9, 6, 7], [6, 9, 7]):
            skipped = sample(steps[: len(stages)])
            summary = handle.summary()
            assert [stage.stage for stage in summary.stages] == stages
            assert [stage.steps for stage in summary.stages] == steps[: len(stages)]
            for stage in summary.stages:
                expected = [step for step in range(stage.steps) if step < 2 or step % 3 == 1]
                last_of_unclip = [stage.steps - 1] if stage.stage == "super_res_first" else []  # another denoiser
                assert stage.evaluated == sorted({*expected, *last_of_unclip})
                assert sum(branch.steps for branch in stage.branches.values()) == stage.calls == stage.steps
        assert skipped.shape == plain.shape
        assert not torch.equal(skipped, plain)
    assert torch.equal(sample([6, 9, 7][: len(stages)]), plain)


@every_pipeline
@pytest.mark.parametrize("site", ["output", "sampler"])
def test_the_default_adds_up_in_each_stage(name: str, site: str) -> None:
    pipe, sample = build(name)
    steps = [8, 9, 7][: len(STAGED[name][2])]
    plain = sample(steps)
    with spectrum_diffusion.enable(pipe, site=site, evaluated=[0, 1, 3]) as handle:
        assert torch.isfinite(sample(steps)).all()
        stages = handle.summary().stages
    assert [(stage.stage, stage.steps) for stage in stages] == list(zip(STAGED[name][2], steps, strict=True))
    for stage in stages:
        last_of_unclip = [6] if stage.stage == "super_res_first" else []  # another denoiser
        assert stage.evaluated == [0, 1, 3, *last_of_unclip]
        assert sum(branch.steps for branch in stage.branches.values()) == stage.steps
    assert torch.equal(sample(steps), plain)


@pytest.mark.parametrize("shared", [False, True], ids=["two U-Nets", "one U-Net"])
@pytest.mark.parametrize(("method", "site"), [("spectrum", "output"), ("spectrum", "sampler"), ("paper", "last_block")])
def test_a_base_and_a_refiner_share_the_steps(method: str, site: str, shared: bool) -> None:
    base = PIPELINES["sdxl-denoising-end"].build()
    refiner = PIPELINES["sdxl-denoising-start"].build()
    if shared:
        refiner.register_modules(unet=base.unet)

    def sample() -> torch.Tensor:
        latents = PIPELINES["sdxl-denoising-end"].call(base, steps=20, denoising_end=0.7)
        return PIPELINES["sdxl-denoising-start"].call(refiner, steps=20, image=latents, denoising_start=0.7)

    plain = sample()
    options = {"site": site, "evaluated": [0, 1, 2, 3]}
    with spectrum_diffusion.enable(base, method, **options) as first:
        with spectrum_diffusion.enable(refiner, method, **options) as second:
            assert not torch.equal(sample(), plain)
            assert first.summary().steps + second.summary().steps == 20
            assert first.summary().evaluated == second.summary().evaluated == [0, 1, 2, 3]
    assert torch.equal(sample(), plain)


@every_pipeline
def test_fewer_steps_in_every_stage(name: str) -> None:
    pipe, sample = build(name)
    count = len(STAGED[name][2])
    expected = sample([4, 6, 5][:count])
    site = {"site": "output"} if name == "wuerstchen" else {}
    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, **site) as handle:
        assert torch.equal(sample([8, 12, 10][:count]), expected)
    assert [stage.steps for stage in handle.summary().stages] == [4, 6, 5][:count]


def test_a_solver_reaches_the_pipeline_inside_a_combined_one() -> None:
    pipe, sample = build("kandinsky")
    own = pipe.scheduler
    plain = sample([4, 6])
    pipe.decoder_pipe.scheduler = d.DPMSolverMultistepScheduler.from_config(own.config)
    by_hand = sample([4, 6])
    pipe.decoder_pipe.scheduler = own
    assert not torch.equal(by_hand, plain)
    configuration = copy.deepcopy(dict(pipe.config)), copy.deepcopy(dict(pipe.decoder_pipe.config))
    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver="dpm++"):
        assert torch.equal(sample([8, 12]), by_hand)
    assert pipe.scheduler is own
    assert pipe.decoder_pipe.scheduler is own
    assert configuration == (dict(pipe.config), dict(pipe.decoder_pipe.config))
    assert torch.equal(sample([4, 6]), plain)


def test_a_solver_is_refused_where_the_pipeline_inside_cannot_use_it() -> None:
    pipe, _ = build("kandinsky")
    with pytest.raises(UnsupportedModelError, match="a generator to step, which does not take it"):
        spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver="unipc")
    pipe.scheduler = pipe.decoder_pipe.scheduler = d.DDPMWuerstchenScheduler()
    with pytest.raises(UnsupportedModelError, match=r"KandinskyV22CombinedPipeline .*no alphas_cumprod.*Use no solver"):
        spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver="unipc")


def test_a_solver_is_refused_where_no_scheduler_is_the_main_one() -> None:
    pipe, _ = build("unclip")
    message = "UnCLIPPipeline has no component named scheduler (its schedulers: prior_scheduler, decoder_scheduler,"
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver="unipc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": None}, "fewer-steps sets the number of steps, and this call has none"),
        ({"timesteps": [900, 500, 100]}, "which timesteps=… would override"),
    ],
)
def test_fewer_steps_of_a_call_without_a_number_of_steps(arguments: dict[str, Any], message: str) -> None:
    entry = PIPELINES["sdxl"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "fewer-steps"):
        with pytest.raises(InvalidOptionError, match=message):
            entry.call(pipe, **arguments)


def video_with_audio() -> Any:
    """LTX-2: one denoiser for video and audio, whose latents a scheduler and a copy of it step."""
    connectors = pytest.importorskip("diffusers.pipelines.ltx2.connectors")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8}
    positions = {"rope_double_precision": False, "rope_type": "split"}
    streams = ("video", "audio")
    text = {f"{stream}_connector_{name}": size for stream in streams for name, size in sizes.items()}
    text |= {f"{stream}_connector_num_learnable_registers": None for stream in streams}
    latents = {"in_channels": 4, "out_channels": 4, "audio_in_channels": 4, "audio_out_channels": 4}
    audio = {"audio_num_attention_heads": 2, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8}
    context = {"cross_attention_dim": WIDTH, "caption_channels": WIDTH}
    blocks = {"block_out_channels": (8,), "decoder_block_out_channels": (8,), "downsample_type": ("spatial",)}
    layers = {"layers_per_block": (1,), "decoder_layers_per_block": (1, 1), "decoder_inject_noise": (False, False)}
    scaling = {"spatio_temporal_scaling": (True,), "decoder_spatio_temporal_scaling": (True,)}
    up = {"upsample_residual": (False,), "upsample_factor": (1,), "patch_size": 1, "patch_size_t": 1}
    return d.LTX2Pipeline(
        transformer=d.LTX2VideoTransformer3DModel(
            **latents, **sizes, **audio, **context, **positions, patch_size=1, patch_size_t=1, num_layers=2
        ),
        connectors=connectors.LTX2TextConnectors(
            caption_channels=WIDTH, text_proj_in_factor=1, connector_rope_base_seq_len=32, **text, **positions
        ),
        vae=d.AutoencoderKLLTX2Video(latent_channels=4, **blocks, **layers, **scaling, **up),
        audio_vae=d.AutoencoderKLLTX2Audio(base_channels=4, ch_mult=(1,), latent_channels=2, mel_bins=8),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    )


@pytest.mark.parametrize(("method", "site"), [("spectrum", "output"), ("paper", "last_block"), ("fora", "module")])
def test_video_and_audio_of_one_denoiser(method: str, site: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = video_with_audio()
        embeds = torch.randn(1, 8, WIDTH)
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    prompts = {"prompt_embeds": embeds, "negative_prompt_embeds": -embeds}
    masks = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), torch.ones(1, 8).long())
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 10, "guidance_scale": 3.0}

    def sample() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return pipe(**prompts, **masks, **size, generator=generator, output_type="latent", return_dict=False)

    plain = sample()
    with pytest.raises(UnsupportedModelError, match="audio_scheduler and scheduler take steps in one sampling loop"):
        spectrum_diffusion.enable(pipe, site="sampler")
    with spectrum_diffusion.enable(pipe, method, site=site, evaluated=[0, 1, 2, 3, 4, 7]) as handle:
        for skipped, whole in zip(sample(), plain, strict=True):
            assert torch.isfinite(skipped).all()
            assert not torch.equal(skipped, whole)
        summary = handle.summary()
    assert summary.evaluated == [0, 1, 2, 3, 4, 7]
    assert len(summary.branches) > 1
    assert all(branch.steps == 10 for branch in summary.branches.values())
    assert all(torch.equal(after, before) for after, before in zip(sample(), plain, strict=True))
