"""Evaluated steps chosen while a loop runs: budgets and gaps, and whole runs against a second, slow controller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from aborts import AbortError, fail_in_denoiser, kept_features
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PIPELINES
from test_corrector import SCHEDULERS, SlowPath
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumWarning, UnsupportedModelError
from spectrum_diffusion.core.controller import SHORT, Controller, evaluations_after, largest_error, next_place
from spectrum_diffusion.core.schedule import Noise, fewest_nodes, nodes
from spectrum_diffusion.methods import make_method

STEPS = 30
SITES = ("output", "sampler")


def chosen(total: int, errors: Iterator[float], tolerance: float, most: int | None = None) -> tuple[list[int], list]:
    """The evaluated steps where the errors are these, and the notes."""
    controller = Controller(tolerance, fewest_nodes(total), total if most is None else most)
    steps, notes = [], []
    for step in range(total):
        if controller.evaluates(step, total):
            if steps:
                controller.compare((torch.tensor([1.0 + next(errors)]),), (torch.tensor([1.0]),))
            controller.end(step, total, nodes, notes.append)
            steps.append(step)
    return steps, notes


def constant(error: float) -> Iterator[float]:
    while True:
        yield error


def test_the_usual_error_gives_the_schedule_of_the_usual_count() -> None:
    assert chosen(50, constant(0.25), 0.25) == (nodes(50, 14), [])


def test_a_larger_error_and_a_tighter_tolerance_evaluate_more() -> None:
    by_error = [len(chosen(50, constant(error), 0.25)[0]) for error in (1e-9, 0.05, 0.1, 0.25, 0.5, 1.0, math.nan)]
    by_tolerance = [len(chosen(50, constant(0.25), tolerance)[0]) for tolerance in (1e9, 2.0, 0.5, 0.25, 0.1, 1e-12)]
    for counts in (by_error, by_tolerance):
        assert counts == sorted(counts)
        assert counts[0] < counts[3] < counts[-1]
    assert by_tolerance[-1] == 50
    assert by_tolerance[0] == fewest_nodes(50)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(2, 120),
    st.lists(st.floats(0, 100) | st.just(math.nan), min_size=120, max_size=120),
    st.floats(1e-6, 1e3),
    st.integers(0, 120),
)
def test_the_budget_is_kept_and_the_last_step_evaluated(
    total: int, errors: list[float], tolerance: float, spare: int
) -> None:
    most = min(fewest_nodes(total) + spare, total)
    steps, notes = chosen(total, iter(errors), tolerance, most)
    assert len(steps) <= most
    assert steps[0] == 0
    assert steps[-1] == total - 1
    assert all(3 * (after - before - 1) <= total for before, after in pairwise(steps))
    assert most < total or not notes


def test_the_summary_is_told_where_the_budget_was_too_small() -> None:
    steps, notes = chosen(50, constant(0.25), 0.05, most=14)
    assert len(steps) == 14
    assert set(notes) == {SHORT}


def test_a_spent_budget_evaluates_no_more() -> None:
    controller = Controller(0.1, 4, 4)
    for step in range(5):  # fallbacks that the controller did not choose
        controller.end(step, 50, nodes, lambda text: None)
    assert not any(controller.evaluates(step, 50) for step in range(5, 50))


def test_a_schedule_is_followed_from_its_nodes() -> None:
    steps = nodes(50, 10)
    for i, step in enumerate(steps[:-1]):
        assert next_place(step, steps) == pytest.approx(steps[i + 1])
        assert evaluations_after(step, steps) == 9 - i
    assert evaluations_after(49, steps) == 0


def test_a_schedule_is_followed_from_between_its_nodes() -> None:
    # Step 2 has passed 1/4 of the first distance; what is left, 2.75 distances, is passed in three equal parts.
    assert evaluations_after(2, [0, 8, 12, 14]) == 3
    assert next_place(2, [0, 8, 12, 14]) == pytest.approx(8 + (0.25 + 2.75 / 3 - 1) * 4)
    assert next_place(13, [0, 8, 12, 14]) == pytest.approx(14)


def test_the_largest_error_of_samples_and_tensors() -> None:
    truth = (torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[10.0]]), torch.tensor([1]))
    forecast = (torch.tensor([[3.0, 4.5], [0.0, 1.2]]), torch.tensor([[9.0]]), torch.tensor([5]))
    assert float(largest_error(forecast, truth)) == pytest.approx(0.2)
    assert float(largest_error((truth[0] * 2,), (truth[0],))) == pytest.approx(1.0)


# Whole runs


class SlowController:
    """The rule written a second time: lists and NumPy in float64, all errors at once."""

    def __init__(self, tolerance: float, most: int, noise: Noise) -> None:
        self.tolerance, self.most, self.noise = tolerance, most, noise
        self.evaluated: list[int] = []
        self.pairs: list[tuple[float, int]] = []  # error, and the evaluations of the schedule that was followed
        self.next, self.count = 0, 0

    def learn(self, step: int, error: float | None) -> None:
        self.evaluated.append(step)
        if error is not None:
            self.pairs.append((error, self.count))
        if step == STEPS - 1:
            return
        product = (0.25 * 14**2) ** 12 * np.prod([error * count**2 for error, count in self.pairs])
        wanted = round(math.sqrt(product ** (1 / (12 + len(self.pairs))) / self.tolerance))
        fewest = fewest_nodes(STEPS)
        for count in range(min(max(wanted, fewest), STEPS, self.most), 0, -1):
            self.count, schedule = count, np.array(nodes(STEPS, count, 1, self.noise))
            places = np.arange(count)
            left = count - 1 - np.interp(step, schedule, places)
            parts = math.ceil(round(left, 6))
            place = round(float(np.interp(count - 1 - left * (parts - 1) / parts, places, schedule)), 6)
            for self.next in (max(round(place), step + 1), math.ceil(place)):
                left_then = count - 1 - np.interp(self.next, schedule, places)
                if len(self.evaluated) + 1 + math.ceil(round(left_then, 6)) <= self.most:
                    return


@pytest.mark.parametrize(("tolerance", "most"), [(0.02, 30), (0.02, 12), (0.3, 30)])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_whole_runs_are_those_of_a_slow_controller(name: str, tolerance: float, most: int) -> None:
    entry = PIPELINES["sd15"]
    pipe = entry.build()
    pipe.scheduler = SCHEDULERS[name](pipe.scheduler.config)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    width = pipe.unet.config.cross_attention_dim
    embeds, negative = (torch.randn(1, 7, width, generator=generator) for _ in range(2))
    expected, steps = slow_run(pipe, latents, embeds, negative, tolerance, most)
    with spectrum_diffusion.enable(pipe, tolerance=tolerance, max_nfe=most, site="sampler") as handle:
        sampled = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            latents=latents.clone(),
            guidance_scale=3.0,
            num_inference_steps=STEPS,
            output_type="latent",
        ).images
    summary = handle.summary()
    assert summary.evaluated == steps
    assert summary.nfe == summary.to_dict()["nfe"] == len(steps) <= most
    assert (sampled - expected).abs().max() < 1e-5 * expected.abs().max()


def slow_run(
    pipe: Any, latents: torch.Tensor, embeds: torch.Tensor, negative: torch.Tensor, tolerance: float, most: int
) -> tuple[torch.Tensor, list[int]]:
    """Stable Diffusion's own loop at guidance 3: the latents, and the evaluated steps."""
    pipe.scheduler.set_timesteps(STEPS)
    alphas = pipe.scheduler.alphas_cumprod.double()[pipe.scheduler.timesteps.long()]
    ratios = ((1 - alphas) / alphas).sqrt().tolist()
    if len(sigmas := getattr(pipe.scheduler, "sigmas", [])) >= STEPS:
        ratios = [float(sigma) for sigma in sigmas[:STEPS]]
    controller = SlowController(tolerance, most, Noise(tuple(ratios), 4 * 8 * 8))
    path = SlowPath(pipe.scheduler, 2.0)
    sample = latents * path.scheduler.init_noise_sigma
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step < controller.next:
            sample = path.take(t, path.forecast(step, sample), sample)
            continue
        scaled = path.scheduler.scale_model_input(sample, t)
        with torch.no_grad():
            without, given = (pipe.unet(scaled, t, encoder_hidden_states=e).sample for e in (negative, embeds))
        output = without + 3.0 * (given - without)
        error = None
        if path.steps:
            off = (path.forecast(step, sample) - output).double().numpy()
            error = float(np.linalg.norm(off) / np.linalg.norm(output.double().numpy()))
        controller.learn(step, error)
        sample = path.evaluated(step, t, output, sample)
    return sample, controller.evaluated


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["sd3", "sdxl", "wan", "flux-true-cfg", "hunyuan-video"])
def test_every_branch_takes_the_same_decision(name: str, site: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    plain = entry.call(pipe, steps=STEPS)
    seen: dict[int, set[str]] = {}
    with spectrum_diffusion.enable(
        pipe,
        tolerance=0.3,
        site=site,
        on_step=lambda step, branch, action, reason: seen.setdefault(step, set()).add(action),
    ) as handle:
        first = entry.call(pipe, steps=STEPS)
        summary = handle.summary()
        assert torch.equal(entry.call(pipe, steps=STEPS), first)
        assert handle.summary().evaluated == summary.evaluated
    assert all(len(actions) == 1 for actions in seen.values())
    assert [step for step, actions in seen.items() if actions == {"evaluated"}] == summary.evaluated
    for row in summary.branches.values():
        assert (row.evaluated, row.evaluated + row.forecast, row.fallback) == (summary.nfe, summary.steps, 0)
    assert summary.nfe < summary.steps
    assert torch.equal(entry.call(pipe, steps=STEPS), plain)


@pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")
@pytest.mark.parametrize("name", PIPELINES)
def test_it_works_with_every_pipeline_and_adds_up(name: str) -> None:
    """Among them Heun's scheduler, two experts, several loops, and guidance that starts or stops midway."""
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, tolerance=0.3) as handle:
        latents = entry.call(pipe, steps=20)
        summary = handle.summary()
    assert torch.isfinite(latents).all()
    assert summary.nfe < summary.steps == entry.total(20)
    assert sum(row.steps for row in summary.branches.values()) == summary.calls
    assert sum(row.evaluated for row in summary.branches.values()) == summary.evaluated_calls


@pytest.mark.parametrize("site", SITES)
def test_a_tighter_tolerance_evaluates_more_and_a_budget_is_kept(site: str) -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()

    def nfe(**options: Any) -> int:
        with spectrum_diffusion.enable(pipe, site=site, **options) as handle:
            entry.call(pipe, steps=STEPS)
        return handle.summary().nfe

    counts = [nfe(tolerance=tolerance) for tolerance in (1e3, 0.5, 0.1, 1e-9)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[-1] == STEPS
    assert nfe(tolerance=1e-9, max_nfe=9) == 9


@pytest.mark.parametrize("options", [{"tolerance": 1e-9}, {"method": "teacache", "threshold": 1e-9}])
def test_a_tolerance_that_skips_nothing_says_so(options: dict[str, Any]) -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    if options.get("method") == "teacache":
        options = {**options, "coefficients": [1.0, 0.0]}
    with spectrum_diffusion.enable(pipe, **options) as handle:
        with pytest.warns(SpectrumWarning, match="evaluated every step, so the result is untouched: its threshold or"):
            entry.call(pipe, steps=12)
        assert handle.summary().nfe == 12


@pytest.mark.parametrize("site", SITES)
def test_an_aborted_generation_leaves_nothing_to_the_next(site: str) -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    options = {"tolerance": 0.1, "site": site}
    with spectrum_diffusion.enable(pipe, **options) as handle:
        expected = entry.call(pipe, steps=STEPS)
        evaluated = handle.summary().evaluated
        undo = fail_in_denoiser(pipe, entry, 2)
        with pytest.raises(AbortError):
            entry.call(pipe, steps=STEPS)
        undo()
        assert not kept_features()
        assert torch.equal(entry.call(pipe, steps=STEPS), expected)
        assert handle.summary().evaluated == evaluated


class InTime(nn.Module):
    """A denoiser whose output for each sample is a function of the step, as the sample says it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step, roughness = x[:, :1], x[:, 1:2]
        directions = torch.arange(1.0, 9.0)
        return torch.sin(0.02 * step * directions + directions) + roughness * torch.sin(9.7 * step * directions)


@contextmanager
def running(**options: Any) -> Iterator[Callable[[list[list[float]]], Any]]:
    """A function that samples in a loop of one's own: for each branch the roughness of its samples → the summary."""
    model = InTime().eval()
    with spectrum_diffusion.enable(model, **options) as handle, torch.no_grad():

        def sample(branches: list[list[float]]) -> Any:
            with handle.run(STEPS) as run:
                for step in range(STEPS):
                    run.step(step)
                    for i, batch in enumerate(branches):
                        run.branch(str(i))
                        model(torch.tensor([[float(step), roughness] for roughness in batch]))
            return handle.summary()

        yield sample


def test_the_roughest_sample_and_branch_decide_in_a_loop_of_ones_own() -> None:
    with running(tolerance=0.25) as sample:
        smooth, rough = sample([[0.0]]), sample([[0.2]])
        assert smooth.nfe < rough.nfe < STEPS
        assert sample([[0.0, 0.2]]).evaluated == sample([[0.2, 0.0]]).evaluated == rough.evaluated
        for branches in ([[0.0], [0.2]], [[0.2], [0.0]], [[0.0, 0.2], [0.0, 0.0]]):
            summary = sample(branches)
            assert summary.evaluated == rough.evaluated
            assert {row.evaluated for row in summary.branches.values()} == {rough.nfe}


def test_one_number_is_read_from_the_device_at_each_evaluated_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[None] = []
    read = torch.Tensor.__float__
    with running(tolerance=0.1) as sample:
        monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: (reads.append(None), read(tensor))[1])
        summary = sample([[0.5], [0.0]])
        assert len(reads) == summary.nfe - 1 - 1  # none after the first step, nothing to choose after the last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.1, "speedup": 3}, "tolerance and speedup both determine the evaluated steps"),
        ({"tolerance": 0.1, "evaluated": [0, 1]}, "tolerance and evaluated both determine the evaluated steps"),
        ({"max_nfe": 20}, "max_nfe=20 limits what tolerance chooses, but tolerance is not given: pass tolerance=0.25"),
        ({"tolerance": 0}, "tolerance=0 is out of range"),
        ({"tolerance": 5e-324}, "is out of range, since no forecast is that exact: give 1e-12 or more"),
        ({"gain": 1e39}, r"gain=1e\+39 is out of range"),
        ({"tolerance": -1}, "tolerance=-1"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"tolerance": "tight"}, "tolerance='tight' is not a number"),
        ({"tolerance": 0.1, "max_nfe": 2.5}, "max_nfe=2.5 is not an integer"),
        ({"tolerance": 0.1, "site": "last_block"}, 'site="last_block" forecasts features within the denoiser'),
        ({"tolerance": 0.1, "site": "module"}, 'site="module" forecasts features within the denoiser'),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message.replace("[", r"\[")):
        make_method("spectrum", **options)


def test_a_budget_below_the_fewest_evaluations_is_refused_before_anything_runs() -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, tolerance=0.1, max_nfe=2):
        with pytest.raises(InvalidOptionError, match="max_nfe=2 is too low for 30 steps"):
            entry.call(pipe, steps=STEPS)
    with spectrum_diffusion.enable(InTime().eval(), tolerance=0.1, max_nfe=2) as handle:
        with pytest.raises(InvalidOptionError, match=r"max_nfe=2 is too low for 30 steps.*pass a number within"):
            with handle.run(STEPS):
                pass


def test_processes_that_share_a_model_must_not_decide_by_themselves() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer._parallel_config = object()
    with pytest.raises(UnsupportedModelError, match="split over several processes"):
        spectrum_diffusion.enable(pipe, tolerance=0.1)
    spectrum_diffusion.enable(pipe)
