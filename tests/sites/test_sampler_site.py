"""The sampler site, and the correction of the path at any site: every pipeline, changes midway, refusals, exits."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import diffusers as d
import pytest
import torch
from dummy import Dummy
from pipelines import PIPELINES, PipelineEntry
from test_loops import call_skyreels, skyreels
from tune.linear import LinearPipeline, build

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, UnsupportedModelError
from spectrum_diffusion.core.corrector import CHANGED
from spectrum_diffusion.core.schedule import Noise, fewest_nodes, nodes_for_speedup
from spectrum_diffusion.methods import make_method
from spectrum_diffusion.stepping import why_steps_differ

STEPS = 12
SITES = ("sampler", "output", "last_block")
HEUN = [name for name in PIPELINES if name.endswith("heun")]
every_pipeline = pytest.mark.parametrize("name", [name for name in PIPELINES if name not in HEUN])
quiet = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def sampled(entry: PipelineEntry, pipe: Any, *, steps: int = STEPS, **options: Any) -> tuple[torch.Tensor, Any]:
    call = options.pop("call", {})
    with spectrum_diffusion.enable(pipe, **options) as handle:
        return entry.call(pipe, steps=steps, **call), handle.summary()


@quiet
@every_pipeline
def test_every_pipeline_skips_the_denoiser_whole_and_adds_up(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    plain = entry.call(pipe, steps=20)
    calls: list[None] = []
    for denoiser in entry.denoisers:
        getattr(pipe, denoiser).register_forward_pre_hook(lambda *_: calls.append(None))
    latents, summary = sampled(entry, pipe, steps=20, site="sampler")
    (row,) = summary.branches.values()
    assert row.evaluated + row.forecast == row.steps == summary.steps == entry.total(20)
    assert summary.nfe < summary.steps
    assert len(calls) <= (summary.nfe + 1) * entry.branches  # a call that only begins on a skipped step is made in vain
    assert torch.isfinite(latents).all()
    assert not torch.equal(latents, plain)
    assert torch.equal(entry.call(pipe, steps=20), plain)


@pytest.mark.parametrize("name", ["flux", "hunyuan-video", "sd15-img2img"])
def test_with_one_branch_the_sampler_and_the_output_are_one_site(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    call = {"guidance_scale": 1.0} if name == "sd15-img2img" else {}
    at_sampler, at_output = (sampled(entry, pipe, steps=20, site=site, call=call)[0] for site in ("sampler", "output"))
    assert (at_sampler - at_output).abs().max() < 1e-5 * at_output.abs().max()


@pytest.mark.parametrize("site", SITES)
def test_a_sample_does_not_depend_on_its_batch(site: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    batch = torch.randn(2, *entry.call(pipe, steps=2).shape[1:], generator=torch.Generator().manual_seed(1))
    embeds = {key: value for key, value in entry.family.inputs.items() if key.endswith("embeds")}
    twice = {key: torch.cat([value, 0.5 * value]) for key, value in embeds.items()}
    both, _ = sampled(entry, pipe, site=site, call={**twice, "latents": batch})
    for i, scale in enumerate((1.0, 0.5)):
        scaled = {key: scale * value for key, value in embeds.items()}
        alone, _ = sampled(entry, pipe, site=site, call={**scaled, "latents": batch[i : i + 1]})
        assert (both[i] - alone[0]).abs().max() < 1e-4 * alone.abs().max()


def scaled(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"] * 1.001}


def written_into(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:  # in the middle of a gap
        tensors["latents"].mul_(1.0)
    return {}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("change", "gaps"), [(scaled, 3), (written_into, 1)], ids=["scaled", "written into"])
def test_latents_that_change_between_steps_are_not_corrected_over(
    site: str, change: Callable[..., dict[str, Any]], gaps: int
) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    evaluated = [0, 1, 4, 8, 12] if gaps == 3 else [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    options = {"site": site, "evaluated": evaluated}
    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents"]}
    changed, summary = sampled(entry, pipe, **options, call=call)
    uncorrected, other = sampled(entry, pipe, **options, gain=0.0, call=call)
    corrected, clean = sampled(entry, pipe, **options)
    assert torch.equal(changed, uncorrected)
    assert not torch.equal(changed, corrected)
    assert (summary.notes, other.notes, clean.notes) == ({CHANGED: gaps}, {}, {})
    assert "path not corrected" in str(summary)


MULTISTEP = (d.DPMSolverMultistepScheduler, d.DPMSolverSinglestepScheduler, d.UniPCMultistepScheduler)
"""Their memory is made of samples, and not of outputs alone."""


def halved(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"] * 0.5} if step == 2 else {}


def halved_in_place(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        tensors["latents"].mul_(0.5)
    return {}


def first_halved(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": torch.cat([tensors["latents"][:1] * 0.5, tensors["latents"][1:]])} if step == 2 else {}


@pytest.mark.parametrize("scheduler", MULTISTEP)
@pytest.mark.parametrize(("mode", "change"), [(torch.no_grad, halved), (torch.inference_mode, halved_in_place)])
def test_what_a_scheduler_remembers_of_changed_latents_is_kept(scheduler: Any, mode: Any, change: Any) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    options = {"site": "sampler", "evaluated": [0, 1, *range(4, STEPS)]}
    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents"]}
    with mode():
        changed, summary = sampled(entry, pipe, **options, call=call)
        uncorrected, _ = sampled(entry, pipe, **options, gain=0.0, call=call)
    assert torch.equal(changed, uncorrected)
    assert summary.notes == {CHANGED: 1}


@pytest.mark.parametrize("scheduler", MULTISTEP)
def test_latents_that_change_in_one_sample_of_a_batch(scheduler: Any) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    options = {"site": "sampler", "evaluated": [0, 1, *range(4, STEPS)]}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    embeds = {key: torch.cat([value] * 2) for key, value in entry.family.inputs.items() if key.endswith("embeds")}
    change = {"callback_on_step_end": first_halved, "callback_on_step_end_tensor_inputs": ["latents"]}
    both, _ = sampled(entry, pipe, **options, call={"latents": latents, **embeds, **change})
    first, _ = sampled(entry, pipe, **options, call={"latents": latents[:1], **change})
    second, _ = sampled(entry, pipe, **options, call={"latents": latents[1:]})
    alone = torch.cat([first, second])
    assert (both - alone).abs().max() < 1e-5 * alone.abs().max()


def copied(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    frames = torch.cat([tensors["latents"][:, :, :1], tensors["latents"]], dim=2)
    return {"latents": frames[:, :, 1:]}


def rounded(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"].bfloat16().float()}


@pytest.mark.parametrize("site", SITES)
def test_latents_that_are_copied_or_rounded_between_steps_are_corrected(site: str) -> None:
    """As pipelines do that sample all frames but the first (LTX, HunyuanVideo), or in bfloat16 (Mochi)."""
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    options = {"site": site, "evaluated": [0, 1, 4, 8, 12]}
    call = {"callback_on_step_end_tensor_inputs": ["latents"]}
    corrected, _ = sampled(entry, pipe, **options)
    same, summary = sampled(entry, pipe, **options, call={**call, "callback_on_step_end": copied})
    assert torch.equal(same, corrected)
    close, of_rounded = sampled(entry, pipe, **options, call={**call, "callback_on_step_end": rounded})
    raw, _ = sampled(entry, pipe, **options, gain=0.0)
    assert (close - corrected).norm() < 0.3 * (raw - corrected).norm()
    assert summary.notes == of_rounded.notes == {}


@quiet
@pytest.mark.parametrize("site", SITES)
def test_a_stochastic_sampler_is_not_corrected(site: str) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = d.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    options = {"site": site, "call": {"eta": 1.0}}
    noisy, summary = sampled(entry, pipe, **options)
    assert torch.equal(noisy, sampled(entry, pipe, **options, gain=0.0)[0])
    assert list(summary.notes) == ["path not corrected: noise is added at each step"]


def test_a_scheduler_that_clips_is_not_corrected() -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = d.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=True)
    summary = sampled(entry, pipe)[1]
    assert list(summary.notes) == ["path not corrected: the scheduler clips the samples that it predicts (clip_sample)"]


@quiet
def test_two_experts_and_changing_guidance_begin_anew_at_the_sampler() -> None:
    fallbacks = {}
    for name in ("wan22", "sdxl-guidance-interval", "wan-guidance-starts", "wan-guidance-stops"):
        entry = PIPELINES[name]
        fallbacks[name] = list(sampled(entry, entry.build(), site="sampler", evaluated=[0, 2, 4, 11])[1].fallbacks)
    # The second expert begins at step 9; the batch shrinks after seven; a second call begins, or ends, at the sixth.
    assert fallbacks == {
        "wan22": fallbacks["wan22"],
        "sdxl-guidance-interval": [7],
        "wan-guidance-starts": [7],
        "wan-guidance-stops": [7],
    }
    assert len(fallbacks["wan22"]) == 1


@pytest.mark.parametrize("name", HEUN)
def test_a_scheduler_of_two_evaluations_a_step_is_refused_or_left_uncorrected(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with pytest.raises(UnsupportedModelError, match=r'several times a step. Use site="output"'):
        spectrum_diffusion.enable(pipe, site="sampler")
    latents, summary = sampled(entry, pipe)
    assert torch.equal(latents, sampled(entry, pipe, gain=0.0)[0])
    assert "several times a step" in next(iter(summary.notes))


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_a_scheduler_that_is_refused_is_refused_after_enable_too(name: str) -> None:
    entry = PIPELINES["sdxl"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, site="sampler"):
        pipe.scheduler = getattr(d, name).from_config(pipe.scheduler.config)
        with pytest.raises(UnsupportedModelError, match=f"{name} evaluates the denoiser several times a step"):
            entry.call(pipe, steps=STEPS)


class MakesItsScheduler(d.StableDiffusionXLPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.scheduler = d.UniPCMultistepScheduler.from_config(self.scheduler.config)
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("site", SITES)
def test_a_scheduler_that_the_call_makes_is_followed(site: str) -> None:
    entry = PIPELINES["sdxl-unipc"]
    expected, _ = sampled(entry, entry.build(), site=site)
    pipe = entry.build()
    pipe.__class__ = MakesItsScheduler
    assert torch.equal(sampled(entry, pipe, site=site)[0], expected)
    assert type(pipe.scheduler) is d.UniPCMultistepScheduler


def test_a_bare_denoiser_and_a_loop_of_ones_own_have_no_scheduler() -> None:
    with pytest.raises(UnsupportedModelError, match="a bare denoiser has no scheduler"):
        spectrum_diffusion.enable(Dummy().eval(), site="sampler")
    pipe = PIPELINES["flux"].build()
    with spectrum_diffusion.enable(pipe, site="sampler") as handle:
        with pytest.raises(UnsupportedModelError, match="loop of your own"), handle.run(8):
            pass
    model = Dummy().eval()
    with spectrum_diffusion.enable(model) as handle, torch.no_grad():
        with handle.run(12) as run:
            for step in range(12):
                run.step(step)
                model(torch.full((1, 4), float(step)))
        assert handle.summary().notes == {"path not corrected: you step in a loop of your own": 1}


def test_copies_of_the_scheduler_are_refused_at_the_sampler_and_left_alone_elsewhere() -> None:
    pipe = skyreels()
    plain = call_skyreels(pipe)
    with pytest.raises(UnsupportedModelError, match="it steps copies of its scheduler"):
        spectrum_diffusion.enable(pipe, site="sampler")
    with spectrum_diffusion.enable(pipe) as handle:
        call_skyreels(pipe)
        assert handle.summary().nfe < 12
    assert type(pipe.scheduler) is d.UniPCMultistepScheduler
    assert torch.equal(call_skyreels(pipe), plain)


class StepsCopies(d.FluxPipeline):
    """Steps a copy of its scheduler where no source shows it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own, self.scheduler = self.scheduler, copy.deepcopy(self.scheduler)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.scheduler = own


def test_a_copy_of_the_scheduler_is_refused_when_it_is_made() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.__class__ = StepsCopies
    with spectrum_diffusion.enable(pipe, site="sampler"):
        with pytest.raises(UnsupportedModelError, match="steps copies of its scheduler"):
            PIPELINES["flux"].call(pipe, steps=STEPS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SkyReelsV2DiffusionForcingPipeline", "it steps copies of its scheduler"),
        ("LTX2Pipeline", "audio_scheduler and scheduler take steps in one sampling loop"),
        ("RFD4ProteinaPipeline", "bb_ca_scheduler and local_latents_scheduler take steps in one sampling loop"),
        ("StableDiffusionPanoramaPipeline", "its scheduler takes several steps at one timestep"),
        ("FluxPipeline", ""),  # the usual loop
        ("CogVideoXPipeline", ""),  # one of two steps, by the kind of scheduler
        ("UnCLIPPipeline", ""),  # a loop for each of three schedulers
        ("AnyFlowFARPipeline", ""),  # a loop for each chunk
        ("KandinskyV22CombinedPipeline", ""),  # no loop of its own
        ("StableDiffusionDiffEditPipeline", ""),  # another scheduler in another method
    ],
)
def test_what_a_pipelines_source_tells_of_its_steps(name: str, reason: str) -> None:
    if (cls := getattr(d, name, None)) is None:
        pytest.skip(f"this diffusers has no {name}")
    assert why_steps_differ(cls) == reason


def written_without_source() -> type:
    space: dict[str, Any] = {}
    exec("class Pipeline:\n    def __call__(self):\n        for t in timesteps:\n            copy.step(t)", space)
    return space["Pipeline"]  # type: ignore[no-any-return]


def test_a_pipeline_whose_source_is_missing_is_not_refused() -> None:
    assert why_steps_differ(written_without_source()) == ""


class StepsTwice(d.FluxPipeline):
    """Steps its scheduler twice for the first evaluation."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 0:
                pipe.scheduler.step(tensors["latents"], timestep, tensors["latents"])
            return tensors

        return super().__call__(*args, callback_on_step_end=callback, **kwargs)


def test_more_steps_than_evaluations() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.__class__ = StepsTwice
    entry = PIPELINES["flux"]
    with spectrum_diffusion.enable(pipe, site="sampler"):
        with pytest.raises(UnsupportedModelError, match="several steps for one evaluation"):
            entry.call(pipe, steps=STEPS)


@pytest.mark.parametrize("site", SITES)
def test_the_scheduler_keeps_its_signature_and_its_class(site: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    cls, signature = type(pipe.scheduler), inspect.signature(pipe.scheduler.step)
    seen: list[Any] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((inspect.signature(pipe.scheduler.step) == signature, isinstance(pipe.scheduler, cls)))
        if step == 5:
            raise RuntimeError("stop here")
        return tensors

    plain = entry.call(pipe, steps=STEPS)
    with spectrum_diffusion.enable(pipe, site=site):
        with pytest.raises(RuntimeError, match="stop here"):
            entry.call(pipe, steps=STEPS, callback_on_step_end=callback)
        assert type(pipe.scheduler) is cls
        assert not {"step", "_spectrum_handle"} & vars(pipe.scheduler).keys()
    assert set(seen) == {(True, True)}
    assert torch.equal(entry.call(pipe, steps=STEPS), plain)


@pytest.mark.parametrize("site", SITES)
def test_audit_samples_as_if_it_had_skipped(site: str) -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    skipped, _ = sampled(entry, pipe, site=site)
    audited, summary = sampled(entry, pipe, site=site, audit=True)
    assert torch.equal(skipped, audited)
    assert set(summary.errors) == set(range(STEPS)) - set(summary.evaluated)


@pytest.mark.parametrize("total", [4, 8, 28, 50, 100, 1000])
@pytest.mark.parametrize("speedup", [1.0, 1.3, 2.0, 3.5, 5.0, 6.0, 8.0])
def test_speedup_is_reached_exactly_or_refused_with_the_range(total: int, speedup: float) -> None:
    method = make_method("spectrum", speedup=speedup)
    fewest = fewest_nodes(total)
    if int(total / speedup) < fewest:
        with pytest.raises(InvalidOptionError, match=f"speedup={speedup:g} leaves .* pass a speedup within 1 …"):
            method.schedule(total)
        return
    steps = method.schedule(total)
    assert len(steps) == int(total / speedup)
    assert steps[0] == 0
    assert all(3 * (b - a - 1) <= total for a, b in pairwise([*steps, total]))


def test_a_speedup_of_five_is_within_reach_of_usual_runs() -> None:
    assert all(fewest_nodes(total) <= total // 5 for total in range(30, 1001))


def test_warmup_beside_a_speedup() -> None:
    method = make_method("spectrum", speedup=5, warmup=3)
    assert method.schedule(50) == (0, 1, 2, 3, 7, 13, 21, 32, 43, 49)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("name", "size", "is_flow"),
    [("flux", 256, True), ("sd3", 1024, True), ("wan", 768, True), ("sdxl", 256, False)],
)
def test_schedule_follows_the_noise_levels_of_the_run(name: str, size: int, is_flow: bool, site: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    _, summary = sampled(entry, pipe, site=site, speedup=1.75)
    total = summary.steps
    sigmas = pipe.scheduler.sigmas[:-1][-total:].double()
    ratios = sigmas / (1 - sigmas).clamp_min(1e-3) if is_flow else sigmas
    wanted = nodes_for_speedup(total, 1.75, noise=Noise(tuple(ratios.tolist()), size))
    assert list(summary.evaluated) == wanted != nodes_for_speedup(total, 1.75)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "sdxl", "hunyuan-video"])
def test_forecasts_of_all_branches_are_the_forecast_of_the_guided_output(name: str) -> None:
    entry = PIPELINES[name]
    results = [sampled(entry, entry.build(), site=site, speedup=2.5)[0] for site in ("output", "sampler")]
    assert torch.allclose(*results, rtol=1e-4, atol=1e-5)


class CallsOnceMore(LinearPipeline):
    """Calls its denoiser a second time at one step, and throws the output away."""

    steps_taken = 0

    def predicted(self, x: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        output = super().predicted(x, t, embeds)
        if self.steps_taken == 4:
            super().predicted(x, t, embeds.flip(1))
        self.steps_taken += 1
        return output


@quiet
def test_a_call_that_comes_once_costs_one_evaluation_and_is_forgotten() -> None:
    plain = build()
    pipe = CallsOnceMore(plain.denoiser, plain.scheduler)
    with spectrum_diffusion.enable(pipe, site="sampler", evaluated=[0, 2, 11]) as handle:
        pipe("fox", generator=torch.Generator().manual_seed(0))
        summary = handle.summary()
    assert list(summary.fallbacks) == [5]
    assert summary.evaluated == [0, 2, 5, 11]


def negated(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 5 else {}


@quiet
@pytest.mark.parametrize("site", SITES)
def test_a_prompt_that_changes_midway_is_noticed(site: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    call = {"callback_on_step_end": negated, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    evaluated = [0, 1, 4, 8, 12, 19]
    _, summary = sampled(entry, pipe, steps=20, site=site, evaluated=evaluated, call=call)
    assert list(summary.fallbacks) == [6]
    assert sampled(entry, pipe, steps=20, site=site, evaluated=evaluated)[1].evaluated == evaluated
