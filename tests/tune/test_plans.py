"""Plans for spectrum: fits against formulas and a plain loop, the search, the validation, and where plans fit."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
import warnings
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pipelines import PIPELINES
from tune.linear import SIZE, LinearPipeline, build, curved, diverging, embedded, rough

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumWarning, UnsupportedModelError
from spectrum_diffusion.atomic import StoreError
from spectrum_diffusion.core.forecast import interpolation_weights, taylor_weights
from spectrum_diffusion.core.planned import PlannedPath
from spectrum_diffusion.handle import enable_method
from spectrum_diffusion.plan import LARGEST, Plan, read_plan
from spectrum_diffusion.tune import tune
from spectrum_diffusion.tune.driven import Driven, Session
from spectrum_diffusion.tune.fit import PrefixCache, fit
from spectrum_diffusion.tune.guidance import ONE_BRANCH
from spectrum_diffusion.tune.reference import record
from spectrum_diffusion.tune.samples import Pair, split
from spectrum_diffusion.tune.search import Limits, ScheduleSearch, symmetric, worst_tenth
from spectrum_diffusion.tune.strategies import STRATEGIES, found_by
from spectrum_diffusion.tune.strategies.calibration import Calibration, even, rows_of
from spectrum_diffusion.tune.strategies.lemica import least_worst
from spectrum_diffusion.tune.validation import Candidate, best_of

STEPS = 12
PAIRS = [Pair(prompt, seed) for seed, prompt in enumerate(["fox", "red apple", "a b", "sea"])]
SCHEDULE = (0, 2, 5, 8, 11)
PROMPTS = ["fox", "red apple", "sea", "moon", "tree"]
SCHEDULERS = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
    "ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(solver_order=2),
    "unipc": lambda: UniPCMultistepScheduler(solver_order=2),
    "v-prediction": lambda: UniPCMultistepScheduler(solver_order=3, prediction_type="v_prediction"),
}


def fitted(
    pipe: Any,
    schedule: Any = SCHEDULE,
    ridge: float = 1e-2,
    batch: int = len(PAIRS),
    call: Any = None,
    apart: bool = False,
    cache: PrefixCache | None = None,
    pairs: Sequence[Pair] = PAIRS,
    hold_out: bool = False,
) -> Any:
    with enable_method(pipe, Driven()) as handle, torch.no_grad():
        session = Session(pipe, handle, call or {})
        references = [record(session, pairs[i : i + batch]) for i in range(0, len(pairs), batch)]
        coefficients = references[0].coefficients if apart else ONE_BRANCH
        return fit(session, schedule, references, ridge, cache, coefficients, hold_out=hold_out), references


def slowly(scheduler: Any, ridge: float) -> tuple[list[np.ndarray], torch.Tensor]:
    """The rows of a fit and the final latents by a plain loop: deep copies of the scheduler, least squares by rows."""
    x = torch.cat([torch.randn(1, SIZE, generator=torch.Generator().manual_seed(pair.seed)) for pair in PAIRS]).double()
    prompts = torch.stack([embedded(str(pair.prompt)) for pair in PAIRS])
    scheduler.set_timesteps(STEPS)
    untouched, path, norms = copy.deepcopy(scheduler), [x], []
    for t in scheduler.timesteps:
        output = rough(path[-1], (t.float() / 1000).expand(len(x), 1), prompts)
        norms.append(output.norm(dim=1))
        path.append(untouched.step(output, t, path[-1], return_dict=False)[0])
    scale = torch.stack(norms).mean(0).numpy()  # (B,)
    kept, steps, rows = [], [], []
    for i, t in enumerate(scheduler.timesteps):
        if i in SCHEDULE:
            kept.append(rough(x, (t.float() / 1000).expand(len(x), 1), prompts))
            steps.append(i)
        prior = np.eye(len(kept))[-1] if i in SCHEDULE else np.array(taylor_weights(steps, i, 1))

        def answer(output: torch.Tensor, at: Any = t, now: torch.Tensor = x) -> torch.Tensor:
            return copy.deepcopy(scheduler).step(output, at, now, return_dict=False)[0]

        zero = torch.zeros_like(x)
        factor = float((answer(torch.ones_like(x)) - answer(zero)).mean())
        moves = abs(factor) > 1e-9  # the last step of DDIM does not
        target = (path[i + 1] - answer(zero)) / (factor if moves else 1.0)
        columns = np.stack([(output / torch.tensor(scale)[:, None]).flatten().numpy() for output in kept], 1)
        aim = ((target - sum(w * o for w, o in zip(prior, kept, strict=True))) / torch.tensor(scale)[:, None]).flatten()
        strength = math.sqrt(ridge * np.trace(columns.T @ columns) / len(kept))
        stacked = np.concatenate([columns, strength * np.eye(len(kept))])
        wanted = np.concatenate([aim.numpy(), np.zeros(len(kept))])
        rows.append(prior if i == 0 or not moves else prior + np.linalg.lstsq(stacked, wanted, rcond=None)[0])
        x = scheduler.step(sum(w * o for w, o in zip(rows[-1], kept, strict=True)), t, x, return_dict=False)[0]
    return rows, x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_fit_is_that_of_a_plain_loop(name: str) -> None:
    result, (reference,) = fitted(build(scheduler=SCHEDULERS[name]()))
    rows, final = slowly(SCHEDULERS[name](), ridge=1e-2)
    for row, expected in zip(result.rows, rows, strict=True):
        np.testing.assert_allclose(row, expected, atol=2e-3)
    np.testing.assert_allclose(result.errors, reference.errors(final.float()), rtol=0.02, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_generation_with_a_plan_ends_where_the_fit_did(name: str) -> None:
    pipe = build(scheduler=SCHEDULERS[name]())
    result, _ = fitted(pipe)
    options = {"site": "sampler", "evaluated": SCHEDULE, "step_weights": result.rows}
    for i, pair in enumerate(PAIRS):  # one by one: a sample does not depend on the batch
        untouched = build(scheduler=SCHEDULERS[name]())(pair.prompt, generator=torch.Generator().manual_seed(pair.seed))
        before = pipe.denoiser.calls
        with spectrum_diffusion.enable(pipe, **options) as handle:
            (final,) = pipe(pair.prompt, generator=torch.Generator().manual_seed(pair.seed))
            assert handle.summary().evaluated == list(SCHEDULE)
        assert pipe.denoiser.calls - before == len(SCHEDULE)
        error = float((final - untouched[0]).square().sum() / untouched[0].square().sum())
        assert error == pytest.approx(result.errors[i], rel=0.02, abs=1e-9)
        again = pipe(pair.prompt, generator=torch.Generator().manual_seed(pair.seed))
        assert torch.equal(again[0], untouched[0])


def test_the_weights_of_a_known_path_are_recovered() -> None:
    # Outputs on a parabola in time: the third output mends what came before, and determines what follows.
    schedule = (0, 2, 4)
    result, _ = fitted(build(curved, FlowMatchEulerDiscreteScheduler()), schedule, ridge=1e-9)
    times = FlowMatchEulerDiscreteScheduler()
    times.set_timesteps(STEPS)
    at = [float(t) / 1000 for t in times.timesteps]
    for step in range(5, STEPS):
        expected = interpolation_weights([-at[kept] for kept in schedule], -at[step])
        np.testing.assert_allclose(result.rows[step], expected, rtol=0.05, atol=0.05)
    assert result.errors.max() < 1e-8


def test_batches_agree_with_one_batch() -> None:
    together, _ = fitted(build(curved))
    for batch in (1, 3):
        apart, _ = fitted(build(curved), batch=batch)
        for row, expected in zip(apart.rows, together.rows, strict=True):
            np.testing.assert_allclose(row, expected, rtol=0.05, atol=0.05)
        np.testing.assert_allclose(apart.errors, together.errors, rtol=0.2, atol=1e-5)


@pytest.mark.parametrize("batch", [4, 3, 1])
def test_held_out_pairs_are_led_by_the_weights_of_the_others(batch: int) -> None:
    pipe = build(curved)
    half, _ = fitted(pipe, pairs=PAIRS[::2], batch=min(batch, 2))
    whole, _ = fitted(pipe, batch=batch, hold_out=True)
    for row, expected in zip(whole.rows, half.rows, strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-3 if batch == 4 else 0.05)
    options = {"site": "sampler", "evaluated": SCHEDULE, "step_weights": whole.rows}
    assert len(whole.errors) == 2
    for error, pair in zip(whole.errors, PAIRS[1::2], strict=True):
        (untouched,) = pipe(pair.prompt, generator=torch.Generator().manual_seed(pair.seed))
        with spectrum_diffusion.enable(pipe, **options):
            (final,) = pipe(pair.prompt, generator=torch.Generator().manual_seed(pair.seed))
        measured = float((final - untouched).square().sum() / untouched.square().sum())
        assert measured == pytest.approx(error, rel=0.02, abs=1e-7)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_what_is_remembered_changes_nothing_and_saves_evaluations(limit: int) -> None:
    pipe, cache = build(), PrefixCache(limit)
    schedules = [(0, 2, 5, 8, 11), (0, 2, 5, 9, 11), (0, 2, 5, 8, 11), (0, 3, 5, 8, 11)]
    for schedule in schedules:
        alone, _ = fitted(build(), schedule)
        before = pipe.denoiser.calls
        shared, _ = fitted(pipe, schedule, cache=cache)
        assert shared.rows == alone.rows
        used = pipe.denoiser.calls - before - STEPS  # without the reference
    assert used == 5  # nothing was known of a schedule that differs in its second step
    before = pipe.denoiser.calls
    fitted(pipe, schedules[1], cache=cache)
    assert pipe.denoiser.calls - before - STEPS == (1 if limit else 5)


# Guidance branches with weights of their own.

GUIDED = {"guidance_scale": 3.0}


def test_branches_apart_are_exact_where_each_follows_its_own_law() -> None:
    # Each branch's outputs are multiples of its first one, but by other factors.
    apart, (reference,) = fitted(build(diverging), (0,), ridge=1e-9, call=GUIDED, apart=True)
    together, _ = fitted(build(diverging), (0,), ridge=1e-9, call=GUIDED)
    assert reference.coefficients == pytest.approx((-2, 3), abs=1e-4)
    assert [len(row) for row in apart.rows] == [2] * STEPS
    assert apart.errors.max() < 1e-8 < 1e-5 < together.errors.min()


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_agree_with_one_batch_of_branches_apart(batch: int) -> None:
    together, _ = fitted(build(diverging), call=GUIDED, apart=True)
    apart, _ = fitted(build(diverging), batch=batch, call=GUIDED, apart=True)
    np.testing.assert_allclose(apart.errors, together.errors, rtol=0.2, atol=1e-5)


def test_a_generation_with_branches_apart_ends_where_the_fit_did() -> None:
    pipe = build(rough)
    result, _ = fitted(pipe, call=GUIDED, apart=True)
    options = {"site": "sampler", "evaluated": SCHEDULE, "step_weights": result.rows}
    for error, pair in zip(result.errors, PAIRS, strict=True):
        (untouched,) = build(rough)(pair.prompt, generator=torch.Generator().manual_seed(pair.seed), **GUIDED)
        before = pipe.denoiser.calls
        with spectrum_diffusion.enable(pipe, **options) as handle:
            (final,) = pipe(pair.prompt, generator=torch.Generator().manual_seed(pair.seed), **GUIDED)
            assert handle.summary().evaluated == list(SCHEDULE)
        assert pipe.denoiser.calls - before == len(SCHEDULE)
        measured = float((final - untouched).square().sum() / untouched.square().sum())
        assert measured == pytest.approx(error, rel=0.02, abs=1e-9)


class RescaledPipeline(LinearPipeline):
    """Brings the guided output to the norm of that with the prompt, so that guidance is not linear."""

    def predicted(self, x: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        guided = super().predicted(x, t, embeds)
        return guided / guided.norm(dim=1, keepdim=True)


def test_branches_stay_together_where_guidance_is_not_linear() -> None:
    linear = build(rough)
    pipe = RescaledPipeline(linear.denoiser, linear.scheduler)
    pipe.set_progress_bar_config(disable=True)
    _, (reference,) = fitted(pipe, call=GUIDED)
    assert reference.coefficients == ONE_BRANCH


def test_tune_weighs_branches_apart_where_that_is_better_and_the_plan_keeps_their_guidance() -> None:
    pipe = build(diverging)
    (plan,) = tune(pipe, PROMPTS, nfe=5, pairs=4, held_out=2, runs=3, call=GUIDED)
    assert plan.record["chosen"].endswith("per-branch weights")
    generate(pipe, plan, **GUIDED)
    with pytest.raises(InvalidOptionError, match=r"guidance_scale=3, but this call has 3\.5: its weights do not fit"):
        generate(pipe, plan, guidance_scale=3.5)
    options = {name: plan.options[name] for name in ("site", "evaluated", "step_weights")}
    for scale, message in (
        (5.0, r"guidance that combines the branches as -2, 3, and this one does not"),
        (1.0, "2 guidance branches, but this run has 1"),
    ):
        with spectrum_diffusion.enable(pipe, **options), pytest.raises(InvalidOptionError, match=message):
            pipe("fox", generator=torch.Generator().manual_seed(0), guidance_scale=scale)


def test_samplers_that_no_plan_can_foresee_are_refused() -> None:
    reasons = {
        "adds noise": EulerAncestralDiscreteScheduler(),
        "proportion": DDIMScheduler(clip_sample=True),
    }
    for reason, scheduler in reasons.items():
        with pytest.raises(UnsupportedModelError, match=reason):
            tune(build(scheduler=scheduler), PROMPTS, nfe=5, runs=1)


# The search.


def test_the_search_finds_a_known_schedule_and_repeats_itself() -> None:
    wanted = (0, 3, 9, 14, 22)
    costs = lambda schedule: float(sum(abs(a - b) for a, b in zip(schedule, wanted, strict=True)))  # noqa: E731
    schedules = [ScheduleSearch(costs, 24, Limits(runs=400), seed=5).best([symmetric(24, 5)]) for _ in range(2)]
    assert schedules == [wanted, wanted]


def test_the_search_keeps_within_its_limits() -> None:
    tried: list[tuple[int, ...]] = []

    def cost(schedule: tuple[int, ...]) -> float:
        tried.append(schedule)
        assert schedule[0] == 0
        assert list(schedule) == sorted(set(schedule))
        assert schedule[-1] < 24
        return float(len(tried) % 7)

    ScheduleSearch(cost, 24, Limits(runs=30)).best([(0, 3, 6)])
    assert len(tried) == len(set(tried)) == 30
    ScheduleSearch(cost, 24, Limits(runs=10**6, seconds=1e-9)).best([(0, 3, 6)])
    assert len(tried) == 31  # the start is always tried
    assert ScheduleSearch(cost, 3, Limits(runs=30)).best([(0, 1, 2)]) == (0, 1, 2)  # no other exists


def test_a_symmetric_schedule_by_hand() -> None:
    assert symmetric(50, 10) == (0, 3, 8, 14, 21, 28, 35, 41, 46, 49)
    assert symmetric(12, 1) == (0,)
    assert symmetric(5, 5) == (0, 1, 2, 3, 4)


def test_the_worst_tenth() -> None:
    assert worst_tenth(np.array([3.0, 1.0, 2.0])) == 3.0
    assert worst_tenth(np.arange(20.0)) == 18.5


# Pairs and validation.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40, 300])
def test_pairs_are_split_by_prompts_and_no_seed_is_shared(count: int) -> None:
    prompts = [f"prompt {i}" for i in range(count)]
    fitted_pairs, held_out = split(prompts, 7, 24, 16)
    assert (len(fitted_pairs), len(held_out)) == (24, 16)
    seeds = [pair.seed for pair in [*fitted_pairs, *held_out]]
    assert sorted(seeds) == list(range(7, 47))
    fitted_prompts, others = ({pair.prompt for pair in pairs} for pairs in (fitted_pairs, held_out))
    assert not fitted_prompts & others or count == 1
    if count > 1:  # in the proportion of the pairs
        assert len(others) == max(1, min(count, 40) * 16 // 40)
        assert len(fitted_prompts) == min(count, 40) - len(others)


def candidate(name: str, *errors: float) -> Candidate:
    return Candidate(name, {"evaluated": [0]}, (0,), np.array(errors))


def test_a_plan_is_never_worse_than_the_default_in_mean_or_worst_tenth() -> None:
    default = candidate("default", 1e-3, 1e-3)
    better, uneven = candidate("better", 5e-4, 9e-4), candidate("uneven", 1e-7, 2e-3)
    assert best_of([default, uneven]) is default  # better in the mean, worse in the worst
    assert best_of([default, uneven, better]) is better
    assert best_of([default]) is default


@pytest.mark.parametrize("field", [rough, curved])
def test_tune_writes_a_plan_that_is_not_worse_on_held_out_pairs(field: Any) -> None:
    pipe = build(field)
    calls: list[str] = []
    plans = tune(pipe, PROMPTS, nfe=[6, 5], pairs=6, held_out=4, runs=8, on_run=calls.append)
    for plan, count in zip(plans, (6, 5), strict=True):
        values = json.loads(plan.to_json())
        rows = {row["options"]: row for row in values["validation"]["rows"]}
        default, chosen = rows["default"], rows[values["chosen"]]
        assert values["chosen"] != "default"
        assert chosen["mean"] > default["mean"]
        assert chosen["worst_tenth"] >= default["worst_tenth"]
        assert values["search"]["tried"] == 8
        assert (values["steps"], values["nfe"], values["method"], values["format"]) == (STEPS, count, "spectrum", 2)
        assert len(values["provenance"]["fitted"]) == 6
        with spectrum_diffusion.enable(pipe, plan=values) as handle:
            pipe("fox", generator=torch.Generator().manual_seed(3))
            assert handle.summary().nfe == count
            assert handle.summary().evaluated == values["options"]["evaluated"]
    assert {"reference", "validation"} < set(calls)
    assert any("search for 5 evaluations" in call for call in calls)
    again = tune(build(field), PROMPTS, nfe=[6, 5], pairs=6, held_out=4, runs=8)
    assert [plan.to_dict() for plan in again] == [plan.to_dict() for plan in plans]


def test_an_interrupted_calibration_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    effort = {"nfe": [6, 5], "pairs": 4, "held_out": 2, "runs": 6, "batch": 2}
    whole = tune(build(), PROMPTS, **effort)
    for stop_at in ("reference", "search for 6", "fit", "search for 5", None):
        pipe = build()

        def on_run(done: str, stop_at: str | None = stop_at) -> None:
            if stop_at is not None and done.startswith(stop_at):
                raise KeyboardInterrupt

        try:
            plans = tune(pipe, PROMPTS, folder=tmp_path, on_run=on_run, **effort)
        except KeyboardInterrupt:
            assert stop_at is not None
        else:
            assert stop_at is None
        assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]
        used = pipe.denoiser.calls
        assert torch.equal(pipe("fox", generator=torch.Generator().manual_seed(0))[0], untouched_fox())
    assert [plan.to_dict() for plan in plans] == [plan.to_dict() for plan in whole]
    alone = build()
    tune(alone, PROMPTS, **effort)
    assert used < alone.denoiser.calls / 2  # what the interrupted runs did is not done again


def untouched_fox() -> torch.Tensor:
    return build()("fox", generator=torch.Generator().manual_seed(0))[0]


def disturbed() -> LinearPipeline:
    pipe = build()
    torch.nn.init.ones_(pipe.denoiser.unused)
    return pipe


def test_what_is_kept_serves_only_the_same_calibration_and_may_break(tmp_path: Path) -> None:
    effort = {"nfe": 5, "pairs": 2, "held_out": 1, "runs": 2, "folder": tmp_path}
    (first,) = tune(build(), PROMPTS, **effort)
    names = {path.name for path in tmp_path.iterdir()}
    others: list[tuple[LinearPipeline, dict[str, Any]]] = [
        (build(scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0)), {}),
        (disturbed(), {}),
        (build(), {"seeds": [9]}),
        (build(), {"call": {"guidance_scale": 2.0}}),
    ]
    for pipe, other in others:
        tune(pipe, PROMPTS, **{**effort, **other})
        added = {path.name for path in tmp_path.iterdir()} - names
        assert {name.split("-")[0] for name in added} == {"reference", "held", "search", "fit"}
        names |= added
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    (again,) = tune(build(), PROMPTS, **effort)
    assert again.to_dict() == first.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_enabled_pipeline_is_tuned_as_a_plain_one(tmp_path: Path) -> None:
    effort = {"nfe": 5, "pairs": 2, "held_out": 1, "runs": 1, "folder": tmp_path}
    (plain,) = tune(build(), PROMPTS, **effort)
    names = {path.name for path in tmp_path.iterdir()}
    pipe = build()
    spectrum_diffusion.enable(pipe, speedup=3)
    (enabled,) = tune(pipe, PROMPTS, **effort)
    assert enabled.to_dict() == plain.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_pipeline_that_takes_no_list_says_so_and_is_sampled_one_by_one() -> None:
    class OneByOne(LinearPipeline):
        def __call__(self, prompt: Any, **keywords: Any) -> Any:
            if isinstance(prompt, list):
                raise ValueError("prompt has to be a string")
            return super().__call__(prompt, **keywords)

    plain = build()
    pipe = OneByOne(plain.denoiser, plain.scheduler)
    calls: list[str] = []
    (plan,) = tune(pipe, PROMPTS, nfe=5, pairs=2, held_out=1, runs=1, on_run=calls.append)
    assert calls[0] == "batches of 1, because: ValueError: prompt has to be a string"
    assert plan.record["batch"] == 1


def test_a_speedup_in_place_of_evaluations() -> None:
    (plan,) = tune(build(), PROMPTS, speedup=2.4, pairs=2, held_out=1, runs=1)
    assert plan.record["nfe"] == 5
    with pytest.raises(InvalidOptionError, match="nfe and speedup both"):
        tune(build(), PROMPTS, nfe=5, speedup=2.4)


def test_prompts_with_more_arguments_are_sampled_one_by_one() -> None:
    prompts = [{"prompt": prompt, "guidance_scale": 1.0} for prompt in PROMPTS]
    (plan,) = tune(build(), prompts, nfe=5, pairs=3, held_out=2, runs=2)
    assert plan.record["provenance"]["fitted"][0]["prompt"] == ["guidance_scale", "prompt"]


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_plan_for_a_pipeline_with_guidance_of_two_predictions(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    inputs = {**entry.family.inputs, **entry.arguments}
    call = {"num_inference_steps": STEPS}
    (fitted,) = tune(pipe, [inputs], nfe=6, call=call, pairs=2, held_out=1, runs=2)
    rows = {row["options"]: row for row in fitted.record["validation"]["rows"]}
    assert rows[fitted.record["chosen"]]["mean"] >= rows["default"]["mean"]
    with spectrum_diffusion.enable(pipe, plan=fitted) as handle:
        entry.call(pipe, steps=STEPS)
        assert handle.summary().nfe == 6
    assert torch.equal(entry.call(pipe, steps=STEPS), entry.call(entry.build(), steps=STEPS))


@pytest.mark.parametrize("name", ["wan22"])
def test_pipelines_whose_calls_change_midway_are_refused(name: str) -> None:
    entry = PIPELINES[name]
    inputs = {**entry.family.inputs, **entry.arguments}
    with pytest.raises(UnsupportedModelError, match="no plan can be fitted to this pipeline"):
        tune(entry.build(), [inputs], nfe=6, call={"num_inference_steps": STEPS}, pairs=1, held_out=1, runs=1)


def test_a_plan_holds_the_noise_levels_of_its_own_part_of_the_steps() -> None:
    """DDIM does not know that image-to-image begins late."""
    entry = PIPELINES["sd15-img2img"]
    pipe = entry.build()
    inputs = {**entry.family.inputs, **entry.arguments}
    call = {"num_inference_steps": 20}
    (fitted,) = tune(pipe, [inputs], nfe=6, call=call, pairs=1, held_out=1, runs=1)
    alphas = pipe.scheduler.alphas_cumprod.double()[pipe.scheduler.timesteps[-12:]]
    assert fitted.record["conditions"]["levels"] == pytest.approx(((1 - alphas) / alphas).sqrt().tolist(), rel=1e-4)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"nfe": 13}, "nfe=13 is more than the 12 steps"),
    ({"nfe": 1}, r"nfe=1 of 12 steps is out of reach: speedup=12 .* third of the run"),
    ({"speedup": 100}, r"speedup=100 leaves 0 of 12 steps .* third of the run"),
    ({"nfe": 5, "runs": 0}, "runs=0 is out of range"),
    ({"nfe": 5, "pairs": 0}, "pairs=0 is out of range"),
    ({"nfe": 5, "held_out": 0}, "held_out=0 is out of range"),
    ({"nfe": 5, "batch": 0}, "batch=0 is out of range"),
    ({"nfe": 5, "seconds": float("nan")}, "seconds=nan is out of range"),
    ({"speedup": 0.5}, "speedup=0.5 is out of range"),
    ({"nfe": 5, "seeds": [2**64]}, "seed=18446744073709551616 is out of range: give a whole number within 0 … 9223"),
    ({"nfe": 5, "prompts": [3]}, "prompts holds 3: pass texts, or dicts"),
    ({"nfe": 5, "seeds": [0, 1]}, r"seeds=\[0, 1\] are several, but a plan counts the seeds of its pairs up from one"),
    ({"nfe": 5, "call": {"generator": None}}, "call has generator, which differs from sample to sample"),
    ({"nfe": 5, "call": {"prompt": "fox"}}, "call has prompt, which differs from sample to sample: pass prompts=…"),
    ({"nfe": 5, "prompts": [{"prompt": "fox", "generator": None}]}, "prompts has generator, which differs"),
    ({"nfe": 5, "gain": 2}, "tune has no option 'gain' for spectrum"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        tune(build(), **{"prompts": PROMPTS, "pairs": 2, "held_out": 1, **given})


@pytest.mark.parametrize("kind", [np.array, iter, tuple])
def test_prompts_are_any_list(kind: Any) -> None:
    effort = {"nfe": 5, "pairs": 2, "held_out": 1, "runs": 1}
    plans = [tune(build(), prompts, seeds=kind([1]), **effort)[0] for prompts in (PROMPTS, kind(PROMPTS))]
    assert plans[0].to_json() == plans[1].to_json()


class TwoImages(LinearPipeline):
    """Makes two images of each prompt."""

    def __call__(self, prompt: Any, generator: Any = None, **keywords: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator]
        return super().__call__(2 * prompts, generator=2 * generators, **keywords)


def test_samples_that_cannot_be_told_apart_are_refused() -> None:
    plain = build()
    pipe = TwoImages(plain.denoiser, plain.scheduler)
    with pytest.raises(UnsupportedModelError, match=r"2 latents for 1 samples, .* apart: make one sample in each call"):
        tune(pipe, PROMPTS, nfe=5, pairs=2, held_out=1, runs=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_broken_reference_is_told(value: float) -> None:
    broken = build(lambda x, t, prompt: torch.where(t < 0.5, value, prompt))
    with pytest.raises(UnsupportedModelError, match="the untouched run has NaN, infinite or huge outputs at step 8"):
        tune(broken, PROMPTS, nfe=5, pairs=2, held_out=1, runs=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path) -> None:
    import resource

    effort = {"nfe": 5, "pairs": 2, "held_out": 1, "runs": 1, "folder": tmp_path}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"reference-\w+\.pt can't be written \(File too large\)"):
            tune(build(), PROMPTS, **effort)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    tune(build(), PROMPTS, **effort)


def test_the_prompts_by_place_by_name_and_in_the_old_order() -> None:
    effort = {"nfe": 5, "pairs": 2, "held_out": 1, "runs": 1}
    plans = [
        tune(build(), PROMPTS, **effort),
        tune(build(), prompts=PROMPTS, method="spectrum", **effort),
        tune(build(), "spectrum", PROMPTS, **effort),
        tune(build(), "spectrum", prompts=PROMPTS, **effort),
    ]
    assert all(plan[0].to_dict() == plans[0][0].to_dict() for plan in plans)
    with pytest.raises(InvalidOptionError, match="tune got 3 values"):
        tune(build(), "spectrum", PROMPTS, 5)


# Strategies of others.


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_a_strategy_makes_a_plan_that_does_as_it_says(name: str, scheduler: str, tmp_path: Path) -> None:
    pipe = build(scheduler=SCHEDULERS[scheduler]())
    effort = {"pairs": 3, "held_out": 2, "runs": 6, "batch": 2, "folder": tmp_path}
    (fitted,) = tune(pipe, PROMPTS, nfe=5, strategy=name, **effort)
    assert fitted.record["chosen"] == name
    assert len(fitted.options["evaluated"]) == 5
    assert {row["options"] for row in fitted.record["validation"]["rows"]} == {"default", name}
    for step, row in enumerate(fitted.options["step_weights"]):
        if step in fitted.options["evaluated"] and name != "meancache":
            assert row == [0.0] * (len(row) - 1) + [1.0]
    with spectrum_diffusion.enable(pipe, plan=fitted) as handle:
        pipe("fox", generator=torch.Generator().manual_seed(0))
        assert handle.summary().evaluated == fitted.options["evaluated"]


def calibrated(pipe: Any, count: int, use: Any) -> Any:
    """What ``use`` makes of what a strategy is given."""
    with enable_method(pipe, Driven()) as handle, torch.no_grad():
        session = Session(pipe, handle, {})
        given = Calibration(
            session=session,
            references=[record(session, PAIRS, keep_outputs=True)],
            count=count,
            limits=Limits(runs=5),
            seed=0,
            on_tried=lambda _, __: None,
        )
        return use(given)


def test_budcache_finds_a_better_schedule_than_its_start_and_keeps_the_first_steps() -> None:
    def compared(given: Calibration) -> Any:
        schedule, rows = found_by("budcache")(given)
        start = (0, *(1 + step for step in even(given.steps - 1, 7)))
        return schedule, given.errors(schedule, rows).mean(), given.errors(start, rows_of(start, STEPS)).mean()

    schedule, cost, start = calibrated(build(), 8, compared)
    assert schedule[:2] == (0, 1)
    assert cost < start


def test_l2p_is_exact_on_outputs_that_three_determine() -> None:
    def learnt(given: Calibration) -> Any:
        return given.outputs, *found_by("l2p")(given)

    outputs, schedule, rows = calibrated(build(curved), 4, learnt)
    assert schedule == (0, 4, 7, 11)
    for step in (8, 9, 10):
        forecast = sum(w * outputs[kept] for w, kept in zip(rows[step], schedule, strict=False))
        assert float((forecast - outputs[step]).norm() / outputs[step].norm()) < 0.1


def test_dpcache_finds_what_trying_every_schedule_finds() -> None:
    def both(given: Calibration) -> Any:
        outputs = given.outputs

        def cost(schedule: tuple[int, ...]) -> float:
            total = 0.0
            for step in range(given.steps):
                kept = [evaluated for evaluated in schedule if evaluated <= step]
                weights = taylor_weights(kept, step, 1)
                line = sum(w * outputs[s] for w, s in zip(weights, kept, strict=True))
                total += float((outputs[step] - line).abs().sum())
            return total

        rest = combinations(range(3, given.steps), 2)
        return min(((0, 1, 2, *two) for two in rest), key=cost), found_by("dpcache")(given)[0]

    best, chosen = calibrated(build(), 5, both)
    assert chosen == best


def test_lemica_takes_the_path_that_trying_every_path_finds() -> None:
    moves = random.Random(0)
    for count in (1, 3, 5, 9):
        edges = {(i, j): float(moves.randrange(5)) for i in range(9) for j in range(i + 1, 10)}

        def falling(steps: tuple[int, ...], edges: Any = edges) -> list[float]:
            return sorted((edges[edge] for edge in pairwise((*steps, 9))), reverse=True)

        expected = min(falling((0, *rest)) for rest in combinations(range(1, 9), count - 1))
        assert falling(least_worst(edges, count, 9)) == expected


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_known_outputs_of_untouched_steps_change_nothing_and_save_evaluations(scheduler: str) -> None:
    pipe = build(scheduler=SCHEDULERS[scheduler]())

    def both(given: Calibration) -> Any:
        for i, j in ((0, 3), (4, 7), (8, STEPS)):
            kept = (*range(i + 1), *range(j, STEPS))
            rows, before = rows_of(kept, STEPS), pipe.denoiser.calls
            measured = [given.distance(kept, rows, untouched=0), given.distance(kept, rows, untouched=i + 1)]
            assert measured[1] == pytest.approx(measured[0], rel=1e-4)
            assert pipe.denoiser.calls - before == len(kept) + 1 + STEPS - j

    calibrated(pipe, 5, both)


def test_meancache_forecasts_average_velocities() -> None:
    # With outputs linear in time the average over a gap is exact, but for the first two gaps, which repeat.
    linear = build(lambda x, t, prompt: prompt + t * prompt.roll(1, 1), FlowMatchEulerDiscreteScheduler())

    def compared(given: Calibration) -> Any:
        schedule, rows = found_by("meancache")(given)
        return schedule, given.errors(schedule, rows), given.errors(schedule, rows_of(schedule, STEPS))

    schedule, errors, reused = calibrated(linear, 5, compared)
    assert (schedule[0], len(schedule)) == (0, 5)
    assert errors.mean() < reused.mean() / 2


def test_an_unknown_strategy() -> None:
    with pytest.raises(InvalidOptionError, match="strategy='ditto' is unknown: choose one of spectrum, budcache"):
        tune(build(), PROMPTS, nfe=5, strategy="ditto")


# Where a plan fits.


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    (fitted,) = tune(build(), PROMPTS, nfe=5, pairs=4, held_out=2, runs=3)
    assert "step_weights" in fitted.options
    return json.loads(fitted.to_json())


def generate(pipe: Any, plan: Any, **call: Any) -> None:
    with spectrum_diffusion.enable(pipe, plan=plan):
        pipe("fox", generator=torch.Generator().manual_seed(0), **call)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (FlowMatchEulerDiscreteScheduler(shift=2.0), {"num_inference_steps": 11}, "for 12 steps, but this run has 11"),
    (FlowMatchEulerDiscreteScheduler(shift=2.0), {"num_inference_steps": 20}, "for 12 steps, but this run has 20"),
    (FlowMatchEulerDiscreteScheduler(shift=3.0), {}, "shift=2.0 of the scheduler, not 3.0"),
    (UniPCMultistepScheduler(), {}, "the scheduler FlowMatchEulerDiscreteScheduler, but this one is UniPC"),
]


@pytest.mark.parametrize(("scheduler", "call", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_a_plan_is_refused_where_its_weights_do_not_fit(
    plan: dict[str, Any], scheduler: Any, call: dict[str, Any], message: str
) -> None:
    pipe = build(scheduler=scheduler)
    with pytest.raises(InvalidOptionError, match=message):
        generate(pipe, plan, **call)
    assert pipe.denoiser.calls == 0


def test_other_noise_levels_are_refused_and_another_shape_warns(plan: dict[str, Any]) -> None:
    changed = copy.deepcopy(plan)
    changed["conditions"]["levels"][3] *= 1.1
    with pytest.raises(InvalidOptionError, match="other noise levels"):
        generate(build(), changed)
    changed["conditions"]["latents"] = [SIZE + 1]
    with pytest.warns(SpectrumWarning, match=r"latents of shape \(7,\), but these have \(6,\)"):
        generate(build(), changed)


@pytest.mark.filterwarnings("always")
def test_other_guidance_warns_once(plan: dict[str, Any]) -> None:
    pipe = build()
    with pytest.warns(SpectrumWarning, match="guidance_scale=1, but this call has 2") as caught:
        with spectrum_diffusion.enable(pipe, plan=plan):
            for _ in range(2):
                pipe("fox", generator=torch.Generator().manual_seed(0), guidance_scale=2.0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectrumWarning)
        generate(build(), plan)


class TrueGuidance(LinearPipeline):
    """Keeps its strength of guidance in a local variable, as FLUX does."""

    def __call__(self, prompt: Any, true_cfg_scale: float = 1.0, **keywords: Any) -> Any:
        return super().__call__(prompt, **keywords)


def test_guidance_that_only_the_call_knows_warns_too() -> None:
    plain = build()
    pipe = TrueGuidance(plain.denoiser, plain.scheduler)
    (made,) = tune(pipe, PROMPTS, nfe=5, pairs=2, held_out=1, runs=1)
    with spectrum_diffusion.enable(pipe, plan=made):
        pipe("fox", generator=torch.Generator().manual_seed(0))
        with pytest.warns(SpectrumWarning, match="true_cfg_scale=1, but this call has 4"):
            pipe("fox", generator=torch.Generator().manual_seed(0), true_cfg_scale=4.0)


def test_a_plan_of_a_schedule_alone_is_refused_at_other_steps(plan: dict[str, Any]) -> None:
    schedule = {**plan, "options": {"evaluated": plan["options"]["evaluated"]}}
    with pytest.raises(InvalidOptionError, match="made with 12 steps, but this run has 30: its weights do not fit"):
        generate(build(), schedule, num_inference_steps=30)


def test_images_and_tensors_of_the_call_are_recorded_by_their_content() -> None:
    class WithImage(LinearPipeline):
        def __call__(self, prompt: Any, image: Any = None, **keywords: Any) -> Any:
            return super().__call__(prompt, **keywords)

    plain = build()
    pipe = WithImage(plain.denoiser, plain.scheduler)
    plans = [
        tune(pipe, PROMPTS, nfe=5, pairs=2, held_out=1, runs=1, call={"image": torch.full((2,), value)})[0]
        for value in (0.0, 1.0)
    ]
    first, second = (json.loads(made.to_json())["provenance"]["call"]["image"] for made in plans)
    assert first != second


def test_a_plan_for_another_model_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="made for Other, but this denoiser is"):
        generate(build(), {**plan, "model": "Other"})


WRONG_WEIGHTS: list[tuple[Any, str]] = [
    ("abc", "a row for each of 1 … 1000 steps"),
    ([], "a row for each"),
    ([1.0, 2.0], "a row for each"),
    ([[1.0]] * 1001, "a row for each"),
    ([[1.0], [1.0], [1.0]], r"step_weights\[2\] has 1 numbers, but 2 steps are evaluated up to step 2"),
    ([[1.0, 2.0], [1.0, 2.0], [1.0] * 3], "but 2 steps are evaluated up to step 2: give 2 for each, as in the first"),
    ([[1.0], [1.0], [1e308, 1.0]], r"weight=1e\+308 is out of range"),
    ([[1.0], [1.0], [float("nan"), 1.0]], "weight=nan is out of range"),
    ([[1.0], [1.0], ["x", 1.0]], "weight='x' is not a number"),
    ([[1.0]], "evaluated"),
]


@pytest.mark.parametrize(("weights", "message"), WRONG_WEIGHTS)
def test_wrong_weights(weights: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        spectrum_diffusion.enable(build(), site="sampler", evaluated=[0, 2], step_weights=weights)


@pytest.mark.parametrize("given", [{"site": "output", "evaluated": [0]}, {"site": "sampler"}])
def test_weights_need_a_schedule_and_the_sampler(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="step_weights need the steps"):
        spectrum_diffusion.enable(build(), step_weights=[[1.0]], **given)


def test_a_gain_beside_weights_would_do_nothing(plan: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="gain=0 is the strength of a correction, which step_weights replace"):
        spectrum_diffusion.enable(build(), plan=plan, gain=0.0)


def test_files_that_are_no_plan(tmp_path: Path, plan: dict[str, Any]) -> None:
    file = tmp_path / "plan.json"
    text = json.dumps(plan)
    for broken, message in (
        (text.replace(": 12", ": NaN"), "NaN is not a number"),
        (text + " " * LARGEST, "it has more than 8388608 bytes"),
        (json.dumps({**plan, "format": 3}), "format 3, but this version reads the formats"),
    ):
        file.write_text(broken, encoding="utf-8")
        with pytest.raises(InvalidOptionError, match=message):
            read_plan(file)
    with pytest.raises(InvalidOptionError, match="conditions cannot be read"):
        generate(build(), {**plan, "conditions": {"scheduler": 3}})


def test_a_plan_is_text_to_read_and_comes_back_equal(tmp_path: Path, plan: dict[str, Any]) -> None:
    file = tmp_path / "plan.json"
    read = read_plan(plan)
    file.write_text(read.to_json(note="[a,  b]"), encoding="utf-8")
    assert read_plan(file).to_dict() == {**read.to_dict(), "note": "[a,  b]"}
    assert max(map(len, file.read_text(encoding="utf-8").splitlines())) < 400
    assert "      [1.0],\n" in file.read_text(encoding="utf-8")


def test_plans_of_format_1_still_load() -> None:
    old = {
        "format": 1,
        "method": "spectrum",
        "options": {"evaluated": [0, 2, 5, 8]},
        "model": "Denoiser-0",
        "steps": 12,
    }
    assert isinstance(read_plan(old), Plan)
    with spectrum_diffusion.enable(build(), plan=old) as handle:
        assert handle.method.options()["evaluated"] == [0, 2, 5, 8]


def test_where_guidance_changes_a_plan_goes_on_along_the_line() -> None:
    rows = [[0.0] * sum(kept <= step for kept in (0, 2, 4)) for step in range(STEPS)]

    path = PlannedPath((0, 2, 4), rows)
    for step, value in ((0, 1.0), (2, 3.0)):
        path.append(step, (torch.full((2, SIZE), value),))
    path.clear()
    path.append(3, (torch.full((2, SIZE), 5.0),))
    path.append(4, (torch.full((2, SIZE), 6.0),))
    assert torch.equal(path.skipped(6, None), torch.full((2, SIZE), 8.0))  # type: ignore[arg-type]
