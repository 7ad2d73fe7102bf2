"""Which sampling loop and stage: pipelines with several, copied or late schedulers, and samplers that add noise."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers as d
import pytest
import torch
from pipelines import PIPELINES, schedulers
from pipelines.families import WAN, image, noise
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumWarning, UnsupportedModelError
from spectrum_diffusion.scheduler_clock import SchedulerClock

quiet = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def cascade() -> Any:
    """A prior and a decoder, each with a scheduler of its own, that tells its step by the timestep alone."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "down_blocks_repeat_mappers": (1, 1),
        "up_blocks_repeat_mappers": (1, 1),
        "switch_level": (False,),
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
        "clip_text_pooled_in_channels": 16,
        "timestep_ratio_embedding_dim": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = d.StableCascadeUNet(
            **{**config, "in_channels": 16, "out_channels": 16}, clip_text_in_channels=16, clip_image_in_channels=16
        )
        decoder = d.StableCascadeUNet(**config, effnet_in_channels=16, patch_size=2)
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    pipe = d.StableCascadeCombinedPipeline(
        **dict.fromkeys(("tokenizer", "text_encoder", "prior_tokenizer", "vqgan")),
        decoder=decoder.eval(),
        scheduler=d.DDPMWuerstchenScheduler(),
        prior_prior=prior.eval(),
        prior_text_encoder=CLIPTextModelWithProjection(text),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.prior_pipe.set_progress_bar_config(disable=True)
    pipe.decoder_pipe.set_progress_bar_config(disable=True)
    return pipe


def call_cascade(pipe: Any, prior_steps: int, steps: int) -> torch.Tensor:
    return pipe(
        prompt_embeds=noise(1, 6, 16, seed=1),
        prompt_embeds_pooled=noise(1, 1, 16, seed=2),
        negative_prompt_embeds=noise(1, 6, 16, seed=3),
        negative_prompt_embeds_pooled=noise(1, 1, 16, seed=4),
        prior_num_inference_steps=prior_steps,
        num_inference_steps=steps,
        height=128,
        width=128,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


@quiet
def test_each_stage_reads_its_own_scheduler_and_has_its_own_summary() -> None:
    pipe = cascade()
    with spectrum_diffusion.enable(pipe, "reuse", site="output", interval=3, warmup=2, slope=0, timing=True) as handle:
        for _ in range(2):
            call_cascade(pipe, 8, 14)
        summary = handle.summary()
    prior, decoder = summary.stages
    assert (prior.stage, prior.steps, prior.evaluated) == ("prior_prior", 8, [0, 1, 4, 7])
    assert (decoder.stage, decoder.steps, decoder.evaluated) == ("decoder", 14, [0, 1, 4, 7, 10, 13])
    assert prior.fallbacks == decoder.fallbacks == {}
    assert (summary.stage, summary.evaluated) == ("decoder", decoder.evaluated)
    assert [stage["stage"] for stage in summary.to_dict()["stages"]] == ["prior_prior", "decoder"]
    text = str(summary)
    assert "prior_prior: reuse at output: 8 steps, 4 evaluated" in text
    assert "decoder: reuse at output: 14 steps, 6 evaluated" in text
    assert "outside" not in prior.milliseconds
    assert summary.milliseconds["outside"] > 0


@quiet
def test_a_refusal_in_a_later_loop_says_that_the_first_has_run() -> None:
    pipe = cascade()
    with spectrum_diffusion.enable(pipe, "reuse", site="output", evaluated=[0, 4, 9]):
        with pytest.raises(InvalidOptionError, match="sampling loop 2 of the call, with 6 steps; the loops before it"):
            call_cascade(pipe, 10, 6)


def skyreels(**scheduler: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = WAN.parts()
        config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
        taken = d.SkyReelsV2Transformer3DModel.__init__.__wrapped__.__code__.co_varnames
        parts["transformer"] = d.SkyReelsV2Transformer3DModel(
            **{k: v for k, v in config.items() if k in taken}, inject_sample_info=True
        ).eval()
    pipe = d.SkyReelsV2DiffusionForcingPipeline(
        **parts, scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_skyreels(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe(
        **{
            **WAN.inputs,
            "prompt": None,
            "num_inference_steps": 12,
            "output_type": "latent",
            "return_dict": False,
            **options,
        },
        generator=torch.Generator().manual_seed(0),
    )[0]


def test_a_pipeline_that_steps_copies_of_its_scheduler() -> None:
    pipe = skyreels()
    plain = call_skyreels(pipe)
    with spectrum_diffusion.enable(pipe, "reuse", interval=3, warmup=2, slope=0) as handle:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SpectrumWarning)
            skipped = call_skyreels(pipe)
        summary = handle.summary()
        assert not torch.equal(skipped, plain)
    assert (summary.steps, summary.evaluated, summary.calls) == (12, [0, 1, 4, 7, 10], 24)
    assert summary.fallbacks == {}
    assert torch.equal(call_skyreels(pipe), plain)


def test_a_loop_whose_step_is_unknown_is_untouched_and_says_so() -> None:
    """Frames at different timesteps in one call, so that no timestep is the call's."""
    pipe = skyreels()
    staggered = {"ar_step": 2, "causal_block_size": 1}
    plain = call_skyreels(pipe, **staggered)
    calls = count_calls(pipe.transformer)
    with spectrum_diffusion.enable(pipe, "reuse", warmup=1) as handle:
        with pytest.warns(SpectrumWarning, match="nothing could be skipped.*step unknown"):
            assert torch.equal(call_skyreels(pipe, **staggered), plain)
        summary = handle.summary()
    assert summary.calls == len(calls) == 2 * summary.steps
    assert summary.steps == summary.nfe > 12


def panorama(scheduler: Any) -> Any:
    parts = PIPELINES["sd15"].build().components
    taken = d.StableDiffusionPanoramaPipeline.__init__.__code__.co_varnames
    parts = {name: part for name, part in parts.items() if name in taken}
    pipe = d.StableDiffusionPanoramaPipeline(**{**parts, "scheduler": scheduler}, requires_safety_checker=False)
    pipe.vae_scale_factor = 8  # by which the pipeline computes its windows
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("method", ["reuse", "spectrum"])
@pytest.mark.parametrize("scheduler", [schedulers.ddim, schedulers.pndm, schedulers.dpmpp])
def test_a_pipeline_that_restores_its_scheduler_for_each_window(scheduler: Any, method: str) -> None:
    pipe = panorama(scheduler())
    inputs = {**PIPELINES["sd15"].family.inputs, "height": 512, "width": 640, "num_inference_steps": 6}

    def sample() -> torch.Tensor:
        return pipe(**inputs, output_type="latent", generator=torch.Generator().manual_seed(0)).images

    plain = sample()
    steps = len(pipe.scheduler.timesteps)
    evaluated = [step for step in range(steps) if step < 2 or step % 3 == 1]
    with spectrum_diffusion.enable(pipe, method, evaluated=evaluated) as handle:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SpectrumWarning)
            for _ in range(2):
                skipped = sample()
                summary = handle.summary()
                assert (summary.steps, summary.loops, summary.fallbacks) == (steps, 1, {})
                assert summary.evaluated == evaluated
                assert [branch.steps for branch in summary.branches.values()] == [steps] * 3
        assert not torch.equal(skipped, plain)
    assert torch.equal(sample(), plain)


def count_calls(model: nn.Module) -> list[None]:
    calls: list[None] = []
    model.register_forward_hook(lambda *_: calls.append(None))
    return calls


class Conditioned(d.FluxPipeline):
    """Calls its denoiser before the loop, to encode a condition, as GLM-Image and AnyFlowFAR do."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        self.transformer(
            hidden_states=torch.zeros(1, 16, 16),
            timestep=torch.zeros(1),
            guidance=torch.zeros(1),
            pooled_projections=torch.zeros(1, 16),
            encoder_hidden_states=torch.zeros(1, 6, 16),
            txt_ids=torch.zeros(6, 3),
            img_ids=torch.zeros(16, 3),
        )
        return super().prepare_latents(*args, **kwargs)


@pytest.mark.parametrize("method", ["paper", "reuse", "first-block-cache"])
def test_calls_before_the_loop_belong_to_no_loop(method: str) -> None:
    entry = PIPELINES["flux"]
    expected = entry.build()
    spectrum_diffusion.enable(expected, method, warmup=2)
    pipe = Conditioned(**entry.build().components)
    pipe.set_progress_bar_config(disable=True)
    handle = spectrum_diffusion.enable(pipe, method, warmup=2)
    for steps in (8, 12, 6):
        assert torch.equal(entry.call(pipe, steps=steps), entry.call(expected, steps=steps))
        assert handle.summary().steps == handle.summary().calls == steps


def test_calls_before_the_loop_do_not_read_the_generation_before() -> None:
    """A condition is encoded before the new timesteps, while the scheduler's index is past the end of the last ones."""
    entry = PIPELINES["sd3"]
    expected = entry.build()
    spectrum_diffusion.enable(expected, "reuse", warmup=2)
    pipe = entry.build()
    set_timesteps = pipe.scheduler.set_timesteps

    def encode_first(*args: Any, **kwargs: Any) -> None:
        pipe.transformer(
            hidden_states=torch.zeros(1, 16, 8, 8),
            timestep=torch.zeros(1),
            encoder_hidden_states=torch.zeros_like(entry.family.inputs["prompt_embeds"]),
            pooled_projections=torch.zeros_like(entry.family.inputs["pooled_prompt_embeds"]),
        )
        set_timesteps(*args, **kwargs)

    pipe.scheduler.set_timesteps = encode_first
    handle = spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    for steps in (8, 12, 6):
        assert torch.equal(entry.call(pipe, steps=steps), entry.call(expected, steps=steps))
        assert (handle.summary().steps, handle.summary().calls) == (steps, steps)


def test_calls_before_the_loop_where_a_scheduler_has_no_timesteps_yet() -> None:
    entry = PIPELINES["flux"]
    pipe = Conditioned(**entry.build().components)
    pipe.scheduler.timesteps = None
    pipe.set_progress_bar_config(disable=True)
    with spectrum_diffusion.enable(pipe, "reuse", warmup=2) as handle:
        entry.call(pipe, steps=6)
    assert handle.summary().steps == 6


class Loopless(Conditioned):
    @torch.no_grad()
    def __call__(self) -> None:
        self.prepare_latents(1, 4, 8, 8, torch.float32, "cpu", None)


def test_a_pipeline_without_any_loop_says_so() -> None:
    pipe = Loopless(**PIPELINES["flux"].build().components)
    with spectrum_diffusion.enable(pipe, "reuse") as handle:
        with pytest.warns(SpectrumWarning, match="called its denoiser 1 times without giving its scheduler"):
            pipe()
    assert handle.summary().fallbacks == {0: "no timesteps were set"}


@pytest.mark.parametrize(
    ("name", "options", "stochastic"),
    [
        ("sd15-img2img", {}, False),
        ("sd15-img2img", {"eta": 1.0}, True),
        ("sdxl-ddim", {"eta": 0.5}, True),
        ("sdxl", {}, False),
        ("sdxl-heun", {}, False),
        ("sdxl-dpmpp", {}, False),
        ("sdxl-inpaint", {}, False),
        ("wan", {}, False),
        ("cogvideox", {}, False),
        ("sdxl-euler-ancestral", {}, True),
        ("sd15-lcm", {}, True),
    ],
)
@pytest.mark.parametrize("seeded", [True, False])
def test_a_sampler_that_adds_noise_is_seen_by_what_it_does(
    name: str, options: dict[str, Any], stochastic: bool, seeded: bool
) -> None:
    assert warns_of_noise(PIPELINES[name].build(), PIPELINES[name], seeded, **options) == stochastic


@pytest.mark.parametrize(
    ("scheduler", "stochastic"),
    [
        (d.SASolverScheduler, True),
        (d.DDPMScheduler, True),
        (d.TCDScheduler, False),  # the pipeline gives it eta=0
        (d.KDPM2AncestralDiscreteScheduler, True),
        (d.KDPM2DiscreteScheduler, False),
        (d.LMSDiscreteScheduler, False),
        (d.DEISMultistepScheduler, False),
    ],
)
def test_schedulers_that_add_noise(scheduler: Any, stochastic: bool) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = scheduler(**schedulers.SD_NOISE)
    assert warns_of_noise(pipe, entry, True) == stochastic


def warns_of_noise(pipe: Any, entry: Any, seeded: bool, **options: Any) -> bool:
    if not seeded:
        options["generator"] = None
    with spectrum_diffusion.enable(pipe, "reuse", warmup=2), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            entry.call(pipe, steps=8, **options)
    count = sum("noise is added" in str(warning.message) for warning in seen)
    assert count <= 1
    return count == 1


def wan_video() -> Any:
    pipe = d.WanVideoToVideoPipeline(**WAN.parts(), scheduler=schedulers.flow_unipc())
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("time", ["sigma", "log-snr"])
def test_the_axis_of_video_to_video_is_of_the_noise_levels_that_are_sampled(
    time: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[float]] = []
    original = SchedulerClock.sigmas
    monkeypatch.setattr(SchedulerClock, "sigmas", lambda self: read.append(original(self)) or read[-1])
    pipe = wan_video()
    inputs = {**WAN.inputs, "video": [image(32)[0]] * 9, "strength": 0.6}
    inputs.pop("num_frames")
    with spectrum_diffusion.enable(pipe, "taylor", time=time, warmup=3) as handle:
        pipe(**inputs, num_inference_steps=20, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert handle.summary().steps == 12
    assert read
    assert all(levels == pytest.approx(pipe.scheduler.sigmas[8:20].tolist()) for levels in read)


class Chunked(d.StableDiffusionPipeline):
    """Samples two chunks over the same timesteps, and calls its denoiser after each to fill a cache, as AnyFlowFAR."""

    @torch.no_grad()
    def __call__(self, steps: int, cache_at: int | None) -> list[torch.Tensor]:
        self.scheduler.set_timesteps(steps)
        results = []
        for chunk in range(2):
            sample = noise(1, 4, 8, 8, seed=chunk)
            for timestep in self.scheduler.timesteps:
                output = self._predict(self.scheduler.scale_model_input(sample, timestep), timestep)
                sample = self.scheduler.step(output, timestep, sample).prev_sample
            results.append(sample)
            if cache_at is not None:
                results.append(self._predict(sample, torch.tensor(cache_at)))
            self.scheduler._step_index = None
        return results

    def _predict(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, PIPELINES["sd15"].family.inputs["prompt_embeds"]).sample


@quiet
@pytest.mark.parametrize("site", ["sampler", "output", "last_block"])
@pytest.mark.parametrize(("scheduler", "cache_at"), [(schedulers.ddim, 0), (schedulers.ddim, 1), (schedulers.euler, 0)])
def test_a_call_between_two_loops_over_the_same_timesteps_runs_untouched(
    scheduler: Any, cache_at: int, site: str
) -> None:
    parts = {**PIPELINES["sd15"].build().components, "scheduler": scheduler()}
    pipe = Chunked(**parts, requires_safety_checker=False)
    with spectrum_diffusion.enable(pipe, "spectrum", site=site, evaluated=[0, 1, 3, 6, 9]) as handle:
        expected = pipe(10, None)
        first, cached, second, cached_again = pipe(10, cache_at)
        summary = handle.summary()
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])
    with torch.no_grad():
        assert torch.equal(cached, pipe._predict(first, torch.tensor(cache_at)))
        assert torch.equal(cached_again, pipe._predict(second, torch.tensor(cache_at)))
    assert (summary.steps, summary.loops, summary.evaluated) == (10, 2, [0, 1, 3, 6, 9])


@quiet
@pytest.mark.parametrize("site", ["output", "last_block"])
def test_a_scheduler_whose_steps_have_other_names(site: str) -> None:
    """It predicts and corrects at each timestep; nothing is skipped, and the result is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = d.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=2,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    pipe = d.ScoreSdeVePipeline(unet.eval(), d.ScoreSdeVeScheduler())
    pipe.set_progress_bar_config(disable=True)

    def sample() -> Any:
        return pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="np").images

    plain = sample()
    with spectrum_diffusion.enable(pipe, site=site) as handle:
        assert (sample() == plain).all()
        assert handle.summary().nfe == handle.summary().steps == 12
    with pytest.raises(UnsupportedModelError, match="ScoreSdeVeScheduler has no method named step"):
        spectrum_diffusion.enable(pipe, site="sampler")
