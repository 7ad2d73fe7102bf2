"""Whole pipelines around denoisers that other tests run bare: real skipping adds up, repeats, and leaves no trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any
from unittest.mock import MagicMock

import diffusers as d
import pytest
import torch
from diffusers_suite.hub import clip_tokenizer
from PIL import Image
from pipelines import PIPELINES, schedulers
from pipelines.families import COGVIDEOX, FLUX, FLUX_NEGATIVE, QWEN_IMAGE, SD3, SDXL, image, mask, noise
from test_stages import beside, text_encoder, video_with_audio
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from zoo import ZOO

import spectrum_diffusion
from spectrum_diffusion import SpectrumWarning, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, OTHER = 7, 5
EVALUATED = (0, 1, 3)
TEXT = 8
"""Width of the text that most denoisers of the zoo read."""
Parts = Callable[[], dict[str, Any]]
KINDS = ("", "negative_")


@dataclass(frozen=True)
class Case:
    """How a tiny pipeline is built and called.

    Attributes:
        pipeline: its class.
        parts: makes its components; those left out are None.
        call: arguments of each call.
        setup: changes the pipeline once it is built.
        loops: sampling loops in a call.
        refused: why the sampler site refuses it, or "".
    """

    pipeline: str
    parts: Parts
    call: Mapping[str, Any]
    setup: Callable[[Any], None] = lambda pipe: None
    loops: int = 1
    refused: str = ""

    def build(self) -> Any:
        cls = getattr(d, self.pipeline)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            parameters = inspect.signature(cls.__init__).parameters
            absent = [name for name, each in parameters.items() if name != "self" and each.default is each.empty]
            pipe = cls(**{**dict.fromkeys(absent), **self.parts()})
            self.setup(pipe)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, pipe: Any, steps: int = STEPS) -> Tensor:
        usual = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            output = pipe(**usual, generator=torch.Generator().manual_seed(0), **self.call)
        latents = output[0] if isinstance(output[0], list) else [torch.as_tensor(output[0])]
        return torch.cat([each.flatten() for each in latents])


def zoo(name: str, **changes: Any) -> nn.Module:
    """A denoiser of the zoo, with some options changed."""
    return replace(ZOO[name], config={**ZOO[name].config, **changes}).build()


def around(name: str, vae: Callable[[], Any] = lambda: None, **changes: Any) -> Parts:
    """A denoiser of the zoo, an autoencoder and a flow-matching scheduler."""
    return lambda: {
        "transformer": zoo(name, **changes),
        "vae": vae(),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(),
    }


def with_ddim(parts: Parts) -> Parts:
    return lambda: {**parts(), "scheduler": d.DDIMScheduler(clip_sample=False)}


def text(width: int = TEXT, length: int = 6) -> dict[str, Tensor]:
    """Embeddings of a prompt and of a negative one."""
    return {f"{kind}prompt_embeds": noise(1, length, width, seed=len(kind)) for kind in KINDS}


def masks(kind: torch.dtype = torch.long, length: int = 6) -> dict[str, Tensor]:
    return {f"{name}prompt_attention_mask": torch.ones(1, length, dtype=kind) for name in KINDS}


def size(pixels: int, frames: int | None = None) -> dict[str, int]:
    return {"height": pixels, "width": pixels, **({} if frames is None else {"num_frames": frames})}


def image_vae() -> Any:
    return PIPELINES["sd15"].family.parts()["vae"]


def wan_vae() -> Any:
    return PIPELINES["wan"].family.parts()["vae"]


def hunyuan_vae() -> Any:
    return PIPELINES["hunyuan-video"].family.parts()["vae"]


def ltx_vae() -> Any:
    blocks = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "decoder_inject_noise": (False,) * 5}
    scaled = dict.fromkeys(("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"), (True, True, True, False))
    up = {"upsample_residual": (False,) * 4, "upsample_factor": (1,) * 4, "patch_size": 4, "patch_size_t": 1}
    vae = d.AutoencoderKLLTXVideo(latent_channels=4, **blocks, **layers, **scaled, **up)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def magvit_vae() -> Any:
    return d.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2, spatial_group_norm=False
    )


def changed(model: Any, **options: Any) -> Any:
    """A model of the same class and configuration, with some options changed."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return type(model)(**{**config, **options})


def animated() -> dict[str, Any]:
    adapter = d.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    parts = {"motion_adapter": adapter, "text_encoder": text_encoder(beside(d.AnimateDiffPipeline).CLIPTextModel)}
    unet = PIPELINES["sd15"].family.parts()["unet"]
    return {**parts, "unet": unet, "tokenizer": clip_tokenizer(), "vae": image_vae(), "scheduler": schedulers.ddim()}


def animated_with_controlnet() -> dict[str, Any]:
    parts = animated()
    return {**parts, "controlnet": d.ControlNetModel.from_unet(parts["unet"])}


def hunyuan15() -> dict[str, Any]:
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    parts = around("HunyuanVideo15Transformer3DModel", in_channels=9)()
    return {**parts, "vae": vae, "guider": d.ClassifierFreeGuidance(guidance_scale=3.0)}


def framepack() -> dict[str, Any]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": TEXT, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8))
    processor = SiglipImageProcessor(size={"height": 16, "width": 16})
    parts = around("HunyuanVideoFramepackTransformer3DModel", hunyuan_vae)()
    return {**parts, "image_encoder": encoder, "feature_extractor": processor}


def stable_audio() -> dict[str, Any]:
    vae = d.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = beside(d.StableAudioPipeline).StableAudioProjectionModel(
        text_encoder_dim=TEXT, conditioning_dim=4, min_value=0, max_value=32
    )
    scheduler = d.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    denoiser = zoo("StableAudioDiTModel")
    return {"transformer": denoiser, "vae": vae, "projection_model": projection, "scheduler": scheduler}


def ace_step() -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    layers = {"num_lyric_encoder_hidden_layers": 1, "num_timbre_encoder_hidden_layers": 1}
    conditions = beside(d.AceStepPipeline).AceStepConditionEncoder(
        **sizes, **layers, text_hidden_dim=32, timbre_hidden_dim=8
    )
    return {
        "transformer": zoo("AceStepTransformer1DModel"),
        "vae": changed(stable_audio()["vae"], decoder_input_channels=8),
        "tokenizer": clip_tokenizer(),
        "text_encoder": Qwen3Model(Qwen3Config(**sizes, num_hidden_layers=1, vocab_size=600)),
        "condition_encoder": conditions,
        "scheduler": d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    }


def omnigen() -> dict[str, Any]:
    module = beside(d.OmniGenPipeline)
    if not hasattr(module, "OmniGenMultiModalProcessor"):  # it needs torchvision, but only for given images
        processors = import_module("diffusers.pipelines.omnigen.processor_omnigen")
        processors.transforms = MagicMock()
        module.OmniGenMultiModalProcessor = processors.OmniGenMultiModalProcessor
    encoder, decoder = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return {
        "transformer": zoo("OmniGenTransformer2DModel", vocab_size=600),
        "vae": changed(image_vae(), block_out_channels=(4,) * 4, down_block_types=encoder, up_block_types=decoder),
        "tokenizer": clip_tokenizer(),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
    }


def sana_vae() -> Any:
    blocks = {f"{part}_block_types": ("ResBlock", "EfficientViTBlock") for part in ("encoder", "decoder")}
    widths = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
    scales = {f"{part}_qkv_multiscales": ((), (5,)) for part in ("encoder", "decoder")}
    layers = {f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")}
    return d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, **blocks, **widths, **scales, **layers
    )


class Unchecked(nn.Module):
    """In place of the models that check what Cosmos is asked for and shows."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True


def cosmos() -> dict[str, Any]:
    scheduler = d.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    vae = d.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    parts = around("CosmosTransformer3DModel")()
    return {**parts, "vae": vae, "scheduler": scheduler, "safety_checker": Unchecked()}


def deepfloyd() -> dict[str, Any]:
    unet = changed(PIPELINES["sd15"].family.parts()["unet"], in_channels=3, out_channels=6)
    noisy = d.DDPMScheduler(variance_type="learned_range", thresholding=True)
    return {"unet": unet, "scheduler": noisy, "requires_safety_checker": False}


EMBEDDED = {"negative_prompt": None, "clean_caption": False}
LTX = {**text(), **masks(torch.bool), **size(32, 9), "guidance_scale": 3.0}
WAN = {**text(), **size(32, 9), "guidance_scale": 5.0}
HUNYUAN = {
    **size(32, 9),
    "prompt_embeds": noise(1, 6, TEXT, seed=1),
    "pooled_prompt_embeds": noise(1, TEXT, seed=2),
    "prompt_attention_mask": torch.ones(1, 6),
    "image": image(32),
}
KONTEXT = {**FLUX.inputs, **FLUX_NEGATIVE, "image": image(8), "max_area": 64, "_auto_resize": False}
ANIMATED = {"prompt": "horse", **size(8, 4)}
TRANSFORMER_WAN = {"in_channels": 16, "out_channels": 16}
HUNYUAN15 = {
    **text(16),
    **{f"{kind}prompt_embeds_mask": torch.ones(1, 6) for kind in KINDS},
    **{f"{kind}prompt_embeds_2": noise(1, 4, TEXT, seed=len(kind) + 1) for kind in KINDS},
    **{f"{kind}prompt_embeds_mask_2": torch.ones(1, 4) for kind in KINDS},
    **size(16, 5),
}
KANDINSKY = {
    **{f"{kind}prompt_embeds_qwen": noise(1, 6, TEXT, seed=len(kind)) for kind in KINDS},
    **{f"{kind}prompt_embeds_clip": noise(1, TEXT, seed=len(kind) + 1) for kind in KINDS},
    **{f"{kind}prompt_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32) for kind in KINDS},
    **size(32, 5),
}
HIDREAM = {
    **{f"{kind}prompt_embeds_t5": noise(1, 6, TEXT, seed=len(kind)) for kind in KINDS},
    **{f"{kind}prompt_embeds_llama3": noise(2, 1, 6, 4, seed=len(kind) + 1) for kind in KINDS},
    **{f"{kind}pooled_prompt_embeds": noise(1, TEXT, seed=len(kind) + 2) for kind in KINDS},
    **size(8),
}

ACE_STEP = {"prompt": "piano", "lyrics": "la", "audio_duration": 2.0, "guidance_scale": 3.0}

CASES: dict[str, Case] = {
    "animatediff-freeinit": Case(
        "AnimateDiffPipeline", animated, ANIMATED, lambda pipe: pipe.enable_free_init(num_iters=2), loops=2
    ),
    "animatediff-freenoise": Case(
        "AnimateDiffPipeline",
        animated,
        ANIMATED,
        lambda pipe: pipe.enable_free_noise(context_length=2, context_stride=1),
    ),
    "animatediff-controlnet": Case(
        "AnimateDiffControlNetPipeline",
        animated_with_controlnet,
        {**ANIMATED, "conditioning_frames": [Image.radial_gradient("L").convert("RGB")] * 4},
    ),
    "ltx": Case("LTXPipeline", around("LTXVideoTransformer3DModel", ltx_vae), LTX),
    "ltx-i2v": Case(
        "LTXImageToVideoPipeline", around("LTXVideoTransformer3DModel", ltx_vae), {**LTX, "image": image(32)}
    ),
    "ltx-condition": Case(
        "LTXConditionPipeline", around("LTXVideoTransformer3DModel", ltx_vae), {**LTX, "image": image(32)}
    ),
    "ltx2-i2v": Case(
        "LTX2ImageToVideoPipeline",
        lambda: video_with_audio().components,
        {
            **text(16, 8),
            **masks(length=8),
            **size(32, 5),
            "image": image(32),
            "image_crf": 0,
            "spatio_temporal_guidance_blocks": [0],
        },
        refused="take steps in one sampling loop",
    ),
    "mochi": Case("MochiPipeline", around("MochiTransformer3DModel"), {**text(), **masks(torch.bool), **size(32, 7)}),
    "wan-vace": Case(
        "WanVACEPipeline",
        around("WanVACETransformer3DModel", wan_vae, vace_in_channels=96, **TRANSFORMER_WAN),
        {**WAN, "video": image(32)[None].repeat(1, 9, 1, 1, 1), "mask": mask(32)[None].repeat(1, 9, 3, 1, 1)},
    ),
    "wan-first-frame": Case(
        "WanImageToVideoPipeline",
        lambda: {**around("WanTransformer3DModel", wan_vae, **TRANSFORMER_WAN)(), "expand_timesteps": True},
        {**WAN, "image": image(32)},
    ),
    "hunyuan-i2v": Case(
        "HunyuanVideoImageToVideoPipeline",
        around("HunyuanVideoTransformer3DModel", hunyuan_vae, image_condition_type="token_replace"),
        HUNYUAN,
    ),
    "framepack": Case("HunyuanVideoFramepackPipeline", framepack, {**HUNYUAN, "latent_window_size": 2}, loops=2),
    "hunyuan15": Case("HunyuanVideo15Pipeline", hunyuan15, HUNYUAN15),
    "kandinsky5": Case("Kandinsky5T2VPipeline", around("Kandinsky5Transformer3DModel", hunyuan_vae), KANDINSKY),
    "cogvideox-i2v": Case(
        "CogVideoXImageToVideoPipeline",
        lambda: {
            **COGVIDEOX.parts(),
            "transformer": changed(COGVIDEOX.parts()["transformer"], in_channels=8),
            "scheduler": schedulers.cogvideox_ddim(),
        },
        {**COGVIDEOX.inputs, "image": image(32)},
    ),
    "latte": Case(
        "LattePipeline",
        with_ddim(around("LatteTransformer3DModel", image_vae)),
        {**text(), **size(8), "video_length": 2, "mask_feature": False, **EMBEDDED},
    ),
    "allegro": Case(
        "AllegroPipeline",
        with_ddim(around("AllegroTransformer3DModel", attention_head_dim=12, cross_attention_dim=24)),
        {**text(), **masks(), **size(64, 8), **EMBEDDED},
    ),
    "easyanimate": Case(
        "EasyAnimatePipeline", around("EasyAnimateTransformer3DModel", magvit_vae), {**text(), **masks(), **size(64, 5)}
    ),
    "cosmos": Case("CosmosTextToWorldPipeline", cosmos, {**text(), **size(32, 9)}, refused="several steps"),
    "stable-audio": Case("StableAudioPipeline", stable_audio, {**text(), "audio_end_in_s": 2.0, "guidance_scale": 6.0}),
    "ace-step": Case("AceStepPipeline", ace_step, ACE_STEP, refused="momentum"),
    "omnigen": Case("OmniGenPipeline", omnigen, {"prompt": "horse", **size(16), "guidance_scale": 3.0}),
    "kontext": Case("FluxKontextPipeline", lambda: {**FLUX.parts(), "scheduler": schedulers.flux_euler()}, KONTEXT),
    "kontext-inpaint": Case(
        "FluxKontextInpaintPipeline",
        lambda: {**FLUX.parts(), "scheduler": schedulers.flux_euler()},
        {**KONTEXT, "mask_image": mask(8), "image_reference": image(8)},
    ),
    "chroma": Case(
        "ChromaPipeline",
        around("ChromaTransformer2DModel", image_vae, in_channels=16),
        {**text(32), **masks(torch.bool), **size(8)},
    ),
    "sdxl-pag": Case(
        "StableDiffusionXLPAGPipeline", lambda: {**SDXL.parts(), "scheduler": schedulers.euler()}, SDXL.inputs
    ),
    "sd3-pag": Case(
        "StableDiffusion3PAGPipeline", lambda: {**SD3.parts(), "scheduler": schedulers.flow_euler()}, SD3.inputs
    ),
    "aura-flow": Case(
        "AuraFlowPipeline",
        around("AuraFlowTransformer2DModel", image_vae),
        {**text(), **masks(), **size(8), "negative_prompt": None},
    ),
    "pixart": Case(
        "PixArtSigmaPipeline",
        with_ddim(around("PixArtTransformer2DModel", image_vae, caption_channels=TEXT)),
        {**text(), **masks(), **size(8), **EMBEDDED, "use_resolution_binning": False},
    ),
    "cogview4": Case("CogView4Pipeline", around("CogView4Transformer2DModel", image_vae), {**text(), **size(16)}),
    "bria": Case(  # it compares the class of its scheduler
        "BriaPipeline",
        around("BriaTransformer2DModel", image_vae, in_channels=16),
        {**text(32), **size(16), "guidance_scale": 5.0},
    ),
    "deepfloyd-if": Case("IFPipeline", deepfloyd, text(16)),
    "sana": Case(
        "SanaPipeline",
        around("SanaTransformer2DModel", sana_vae),
        {**text(), **masks(), **size(32), "use_resolution_binning": False, "negative_prompt": None},
    ),
    "lumina2": Case(
        "Lumina2Pipeline", around("Lumina2Transformer2DModel", image_vae), {**text(), **masks(torch.bool), **size(32)}
    ),
    "hidream": Case(
        "HiDreamImagePipeline",
        around("HiDreamImageTransformer2DModel", image_vae),
        HIDREAM,
        lambda pipe: setattr(pipe, "default_sample_size", 8),
    ),
    "z-image": Case(
        "ZImagePipeline",
        around("ZImageTransformer2DModel", image_vae),
        {name: [value[0]] for name, value in text().items()} | size(8),
    ),
}


SITES: dict[str, tuple[str, str]] = {
    "output": ("spectrum", "output"),
    "sampler": ("spectrum", "sampler"),
    "last_block": ("paper", "last_block"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_skips_adds_up_and_is_restored(name: str) -> None:
    case = CASES[name]
    if not hasattr(d, case.pipeline):
        pytest.skip(f"this diffusers has no {case.pipeline}")
    pipe = case.build()
    plain = case.sample(pipe)
    with spectrum_diffusion.enable(pipe, "paper", evaluated=range(STEPS)):
        assert torch.equal(case.sample(pipe), plain)
    for method, site in SITES.values():
        if site == "sampler" and case.refused:
            with pytest.raises(UnsupportedModelError, match=case.refused), enabled(pipe, method, site):
                case.sample(pipe)
        else:
            check(case, pipe, plain, method, site)
    assert torch.equal(case.sample(pipe), plain)


def enabled(pipe: Any, method: str, site: str) -> Any:
    return spectrum_diffusion.enable(pipe, method, site=site, evaluated=EVALUATED)


def check(case: Case, pipe: Any, plain: Tensor, method: str, site: str) -> None:
    with enabled(pipe, method, site) as handle:
        skipped, summary = case.sample(pipe), handle.summary()
        other = case.sample(pipe, OTHER) if site == "output" else None
    assert skipped.shape == plain.shape
    assert 0 < (skipped - plain).norm() < 0.5 * plain.norm()
    assert (summary.steps, summary.loops, summary.evaluated) == (STEPS, case.loops, list(EVALUATED))
    assert summary.fallbacks == {}
    assert {row.evaluated + row.forecast for row in summary.branches.values()} == {STEPS}
    assert summary.calls == STEPS * len(summary.branches)
    if other is not None:  # it remembers nothing of the call before
        with enabled(pipe, method, site):
            assert torch.equal(case.sample(pipe, OTHER), other)


@pytest.mark.parametrize("name", ["ltx-i2v", "hunyuan-i2v", "kandinsky5"])
def test_a_path_is_corrected_where_only_a_part_of_the_latents_is_sampled(name: str) -> None:
    pipe = CASES[name].build()
    with enabled(pipe, "spectrum", "output") as handle:
        CASES[name].sample(pipe)
        assert handle.summary().notes == {}


@pytest.mark.filterwarnings("error::spectrum_diffusion.SpectrumWarning")
@pytest.mark.parametrize(("method", "site"), SITES.values())
def test_noise_on_given_frames_is_not_taken_for_that_of_a_sampler(method: str, site: str) -> None:
    case = CASES["ltx-condition"]
    without = replace(case, call={**case.call, "image_cond_noise_scale": 0})
    pipe = case.build()
    with enabled(pipe, method, site):
        without.sample(pipe)
        with pytest.warns(SpectrumWarning, match="LTXConditionPipeline draws random numbers between the steps of its"):
            case.sample(pipe)


@pytest.mark.parametrize(("method", "site"), SITES.values())
def test_two_stages_with_an_upsampler_between_them(method: str, site: str) -> None:
    """LTX: a small video, its latents upsampled, and the last steps again at twice the size."""
    pipe = CASES["ltx-condition"].build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = beside(d.LTXLatentUpsamplePipeline).LTXLatentUpsamplerModel(
            in_channels=4, mid_channels=32, num_blocks_per_stage=1
        )
    upsampler = d.LTXLatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=model.eval())
    upsampler.set_progress_bar_config(disable=True)

    def sample(after: Callable[[], Any] = lambda: None) -> tuple[Tensor, list[Any]]:
        generator, latents = torch.Generator().manual_seed(0), {"output_type": "latent", "return_dict": False}
        small = pipe(**LTX, **latents, num_inference_steps=8, generator=generator)[0]
        first = after()
        large = upsampler(latents=small, **size(64), **latents)[0]
        refined = {**LTX, **size(64, 9), "latents": large, "denoise_strength": 0.75}
        result = pipe(**refined, **latents, num_inference_steps=8, generator=generator)[0]
        return result, [first, after()]

    plain, _ = sample()
    with enabled(pipe, method, site) as handle:
        skipped, summaries = sample(handle.summary)
    assert [(summary.steps, summary.evaluated) for summary in summaries] == [(8, [0, 1, 3]), (6, [0, 1, 3])]
    assert skipped.shape == plain.shape
    assert 0 < (skipped - plain).norm() < 0.5 * plain.norm()
    assert torch.equal(sample()[0], plain)


@pytest.mark.parametrize(("method", "site"), SITES.values())
def test_an_edit_of_several_images(method: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = beside(d.QwenImageEditPlusPipeline)
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 32 * 32)  # of a million pixels
    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 32 * 32)
    gradient = Image.radial_gradient("L").convert("RGB")
    images = {"image": [gradient.resize((32, 32)), gradient.resize((48, 32))]}
    parts = {"scheduler": schedulers.flux_euler(), "processor": None}
    case = Case("QwenImageEditPlusPipeline", lambda: {**QWEN_IMAGE.parts(), **parts}, {**QWEN_IMAGE.inputs, **images})
    pipe = case.build()
    plain = case.sample(pipe)
    check(case, pipe, plain, method, site)
    assert torch.equal(case.sample(pipe), plain)


@pytest.mark.parametrize("site", ["last_block", "module", "output", "sampler"])
def test_a_video_does_not_depend_on_its_batch_where_frames_are_folded_into_it(site: str) -> None:
    pipe = Case("AnimateDiffPipeline", animated, {}).build()
    shape = (4, 3, 4, 4)  # channels, frames, height, width
    latents = noise(2, *shape, seed=5)
    prompts = ["horse", "red car"]
    usual = {**size(8, 3), "num_inference_steps": 20, "output_type": "latent", "guidance_scale": 3.0}
    with spectrum_diffusion.enable(pipe, site=site, speedup=3):
        together = pipe(prompts, latents=latents, **usual).frames
        for i, prompt in enumerate(prompts):
            alone = pipe(prompt, latents=latents[i : i + 1], **usual).frames
            assert (together[i] - alone[0]).abs().max() < 1e-5 * alone.abs().max()
