"""Calls of the denoiser that belong to no step: GLM-Image and AnyFlow fill caches before, between and after loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import pytest
import torch
from pipelines.families import WAN, noise
from pipelines.families import image as image_of

import spectrum_diffusion

pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")

TEXT = 16


def glm_image() -> Any:
    """A condition image fills the attention's cache before the timesteps are set."""
    absent = ("tokenizer", "processor", "text_encoder", "vision_language_encoder")
    return d.GlmImagePipeline(
        transformer=d.GlmImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=TEXT,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=128,
        ),
        vae=d.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(absent),
    )


def call_glm_image(pipe: Any, steps: int) -> torch.Tensor:
    tokens = torch.arange(4)[None]  # of one image of 32 × 32 pixels
    return pipe(
        prompt_embeds=noise(1, 6, TEXT, seed=1),
        negative_prompt_embeds=noise(1, 6, TEXT, seed=2),
        image=[image_of(32)[0].permute(1, 2, 0).numpy()],
        prior_token_ids=tokens,
        prior_token_image_ids=[tokens[0]],
        source_image_grid_thw=[torch.tensor([[1, 2, 2]])],
        num_inference_steps=steps,
        guidance_scale=1.5,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
    )[0]


def anyflow_far() -> Any:
    """A loop for each chunk of the video; after it a call fills the cache for the chunks that follow."""
    parts = WAN.parts()
    parts["transformer"] = d.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2),
        compressed_patch_size=(1, 4, 4),
        full_chunk_limit=3,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        gate_value=0.25,
        deltatime_type="r",
        chunk_partition=(1, 1, 1),
    )
    return d.AnyFlowFARPipeline(**parts, scheduler=d.FlowMapEulerDiscreteScheduler(shift=5.0))


def call_anyflow_far(pipe: Any, steps: int, **options: Any) -> torch.Tensor:
    return pipe(
        prompt_embeds=WAN.inputs["prompt_embeds"],
        num_inference_steps=steps,
        guidance_scale=1.0,
        height=16,
        width=16,
        num_frames=9,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
        **options,
    )[0]


def call_anyflow_far_with_video(pipe: Any, steps: int) -> torch.Tensor:
    return call_anyflow_far(pipe, steps, video=noise(1, 5, 3, 16, 16, seed=3).sigmoid())


CONDITIONED: dict[str, tuple[str, Callable[[], Any], Callable[[Any, int], torch.Tensor]]] = {
    "glm-image": ("GlmImagePipeline", glm_image, call_glm_image),
    "anyflow-far": ("AnyFlowFARPipeline", anyflow_far, call_anyflow_far),
    "anyflow-far-video": ("AnyFlowFARPipeline", anyflow_far, call_anyflow_far_with_video),
}


@pytest.mark.parametrize("name", CONDITIONED)
@pytest.mark.parametrize("site", ["last_block", "output"])
def test_calls_outside_the_loop_run_and_count_as_no_step(name: str, site: str) -> None:
    cls, create, sample = CONDITIONED[name]
    if not hasattr(d, cls):
        pytest.skip(f"this diffusers has no {cls}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = create()
    pipe.transformer.eval()
    pipe.vae.eval()
    pipe.set_progress_bar_config(disable=True)
    plain = sample(pipe, 7)
    events: list[tuple[int, str]] = []
    options = {"interval": 3, "warmup": 2, "slope": 0, "site": site}
    with spectrum_diffusion.enable(pipe, "reuse", **options, on_step=lambda *event: events.append(event[:2])) as handle:
        for steps in (9, 7):
            events.clear()
            skipped = sample(pipe, steps)
            summary = handle.summary()
            assert {step for step, _ in events} == set(range(steps))
            assert summary.steps == steps
            assert summary.evaluated == [step for step in range(steps) if step < 2 or step % 3 == 1]
            assert summary.fallbacks == {}
            assert {branch.steps for branch in summary.branches.values()} == {steps}
        assert not torch.equal(skipped, plain)
    assert torch.equal(sample(pipe, 7), plain)
