"""fewer-steps with DPM-Solver++ and UniPC: what a user gets who puts the scheduler into the pipeline himself."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from aborts import AbortError
from pipelines import PIPELINES

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, UnsupportedModelError, load_default_pipeline
from spectrum_diffusion.methods.base import SOLVERS
from spectrum_diffusion.solvers import CLASSES, make, obstacle

BOTH = list(CLASSES)
ABLE = {
    "flux": BOTH,
    "flux-true-cfg": BOTH,
    "sd3": BOTH,
    "sd3-skip-layer": BOTH,
    "sd3-heun": BOTH,
    "wan": BOTH,
    "wan22": BOTH,
    "wan-i2v": BOTH,
    "hunyuan-video": ["unipc"],
    "qwen-image": ["unipc"],
    "sdxl": BOTH,
    "sdxl-ddim": BOTH,
    "sdxl-heun": BOTH,
    "sdxl-img2img": BOTH,
    "sdxl-inpaint": BOTH,
    "sdxl-denoising-end": BOTH,
    "sdxl-denoising-start": BOTH,
    "sd15": BOTH,
    "sd15-img2img": BOTH,
}
UNABLE = {
    "flux-img2img": ("dpm++", "the pipeline passes sigmas, which its set_timesteps does not take. Use no solver here"),
    "flux-inpaint": ("unipc", "scale_noise, which it does not have. Use no solver here"),
    "sd3-img2img": ("unipc", "scale_noise, which it does not have. Use no solver here"),
    "hunyuan-video": ("dpm++", "does not take. Use solver='unipc' or no solver here"),
    "qwen-image": ("dpm++", "does not take. Use solver='unipc' or no solver here"),
    "cogvideox": ("dpm++", "would not have the scheduler's noise schedule (alphas_cumprod). Use no solver here"),
}
cases = pytest.mark.parametrize(
    ("name", "solver"), [(name, solver) for name, solvers in ABLE.items() for solver in solvers]
)
pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")


def by_hand(pipe: Any, solver: str) -> Any:
    """What the documentation of diffusers has users write, for noise and for flow matching."""
    config = pipe.scheduler.config
    cls = {"dpm++": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}[solver]
    if isinstance(
        pipe.scheduler, (diffusers.FlowMatchEulerDiscreteScheduler, diffusers.FlowMatchHeunDiscreteScheduler)
    ):
        return cls.from_config(
            config, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config["shift"]
        )
    return cls.from_config(config)


@cases
def test_it_is_the_solver_put_in_by_hand(name: str, solver: str) -> None:
    entry = PIPELINES[name]
    pipe, other = entry.build(), entry.build()
    untouched = torch.as_tensor(entry.call(pipe, steps=12))
    own, attributes, config = pipe.scheduler, set(vars(pipe)), dict(pipe.config)
    other.scheduler = by_hand(other, solver)
    expected = torch.as_tensor(entry.call(other, steps=4))
    handle = spectrum_diffusion.enable(pipe, "fewer-steps", speedup=3, solver=solver)
    for _ in range(2):
        assert torch.equal(torch.as_tensor(entry.call(pipe, steps=12)), expected)
        assert pipe.scheduler is own
    summary = handle.summary()
    taken = len(other.scheduler.timesteps) - (other.scheduler.begin_index or 0)
    assert summary.nfe == summary.steps == min(taken, getattr(other, "num_timesteps", taken) or taken)
    assert not torch.equal(expected, untouched)
    assert torch.isfinite(expected).all()
    spectrum_diffusion.disable(pipe)
    assert (pipe.scheduler, set(vars(pipe)), dict(pipe.config)) == (own, attributes, config)
    assert torch.equal(torch.as_tensor(entry.call(pipe, steps=12)), untouched)


@pytest.mark.parametrize("solver", BOTH)
def test_the_solver_takes_the_steps(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = getattr(diffusers, CLASSES[solver])
    steps: list[Any] = []
    step = cls.step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(cls, "step", counted)
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver=solver):
        entry.call(pipe, steps=20)
    assert len(steps) == 10
    assert set(map(type, steps)) == {cls}


@pytest.mark.parametrize("solver", BOTH)
def test_the_scheduler_is_put_back_after_a_failure(solver: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    own = pipe.scheduler

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe.scheduler is not own
        raise AbortError

    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver=solver):
        first = entry.call(pipe)
        with pytest.raises(AbortError):
            entry.call(pipe, callback_on_step_end=fail)
        assert pipe.scheduler is own
        with pytest.raises((TypeError, ValueError)):
            entry.call(pipe, height=None, prompt_embeds=None)
        assert pipe.scheduler is own
        assert torch.equal(entry.call(pipe), first)


@pytest.mark.parametrize(("name", "solver", "message"), [(name, *row) for name, row in UNABLE.items()])
def test_pipelines_that_cannot(name: str, solver: str, message: str) -> None:
    pipe = PIPELINES[name].build()
    cls = type(pipe)
    with pytest.raises(UnsupportedModelError) as caught:
        spectrum_diffusion.enable(pipe, "fewer-steps", solver=solver)
    said = str(caught.value)
    assert message in said
    assert all(part in said for part in (cls.__name__, type(pipe.scheduler).__name__, CLASSES[solver]))
    assert type(pipe) is cls


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ABLE])
@pytest.mark.parametrize("solver", BOTH)
def test_what_is_not_refused_works(name: str, solver: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    if obstacle(pipe, solver):
        return
    with spectrum_diffusion.enable(pipe, "fewer-steps", speedup=2, solver=solver) as handle:
        assert torch.isfinite(torch.as_tensor(entry.call(pipe, steps=8))).all()
    assert handle.summary().nfe < entry.total(8)


@pytest.mark.parametrize(
    ("changes", "solver", "message"),
    [
        ({"use_karras_sigmas": True}, "unipc", "use_karras_sigmas=True"),
        ({"invert_sigmas": True}, "dpm++", "invert_sigmas=True"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, "unipc", "time_shift_type='linear'"),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, "dpm++", "no shift_terminal. Use solver='unipc'"),
        ({"use_dynamic_shifting": False}, "dpm++", "passes mu, which it takes with use_dynamic_shifting=True only"),
    ],
)
def test_settings_that_a_solver_lacks(changes: dict[str, Any], solver: str, message: str) -> None:
    pipe = PIPELINES["flux"].build()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**changes)
    with pytest.raises(UnsupportedModelError, match=message):
        spectrum_diffusion.enable(pipe, "fewer-steps", solver=solver)


def test_a_scheduler_changed_after_enable_is_looked_at_again() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    spectrum_diffusion.enable(pipe, "fewer-steps", solver="unipc")
    pipe.scheduler = own = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    with pytest.raises(UnsupportedModelError, match="use_karras_sigmas"):
        entry.call(pipe)
    assert pipe.scheduler is own


def test_the_models_schedule_is_kept() -> None:
    """Betas, kind of prediction and shift come from the pipeline's scheduler, and what its call reads of it too."""
    for name in ABLE:
        own = PIPELINES[name].scheduler()
        for solver in BOTH:
            replaced = make(own, solver)
            if "flow" not in replaced.config.prediction_type:
                torch.testing.assert_close(replaced.alphas_cumprod, own.alphas_cumprod)
                assert replaced.config.prediction_type == own.config.prediction_type
    flux = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.3, base_image_seq_len=64)
    for solver in BOTH:
        assert [make(flux, solver).config[key] for key in ("max_shift", "base_image_seq_len")] == [1.3, 64]


def test_names_and_targets_that_are_none() -> None:
    assert tuple(CLASSES) == SOLVERS
    pipe = PIPELINES["flux"].build()
    with pytest.raises(InvalidOptionError, match=r"solver='ddim' is unknown: choose one of dpm\+\+, unipc"):
        spectrum_diffusion.enable(pipe, "fewer-steps", solver="ddim")
    with pytest.raises(InvalidOptionError, match="use UniPCMultistepScheduler in your own loop"):
        spectrum_diffusion.enable(pipe.transformer, "fewer-steps", solver="unipc")


@pytest.mark.parametrize("solver", BOTH)
def test_the_shipped_model(solver: str) -> None:
    pipe, other = load_default_pipeline(), load_default_pipeline()
    other.scheduler = by_hand(other, solver)

    def draw(pipe: Any, **options: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        return torch.as_tensor(pipe("red apple", generator=generator, output_type="pt", **options).images)

    with spectrum_diffusion.enable(pipe, "fewer-steps", solver=solver) as handle:
        assert torch.equal(draw(pipe), draw(other, num_inference_steps=14))
        assert handle.summary().nfe == 14
