"""Calibration against numbers worked out by hand and by plain hooks, the search for a threshold, and plans."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import PIPELINES
from torch import Tensor

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumWarning, UnsupportedModelError
from spectrum_diffusion.plan import read_plan
from spectrum_diffusion.tune import tune
from spectrum_diffusion.tune.threshold import Changes, Magnitudes

STEPS = 12
FLUX = PIPELINES["flux"]
PROMPT = dict(FLUX.family.inputs)
CALL = {"num_inference_steps": STEPS}


def pipeline() -> Any:
    return FLUX.build()


def mean(value: Tensor) -> float:
    return float(np.abs(value.double().numpy()).mean())


def watched(pipe: Any, seeds: list[int]) -> list[dict[str, list[Tensor]]]:
    """What plain hooks see of each picture: modulated input, tokens before the first block and before the tail."""
    block, tail = pipe.transformer.transformer_blocks[0], pipe.transformer.norm_out
    pictures = []
    for seed in seeds:
        seen: dict[str, list[Tensor]] = {"modulated": [], "before": [], "after": []}
        hooks = [
            block.norm1.register_forward_hook(lambda _, args, output, seen=seen: seen["modulated"].append(output[0])),
            block.norm1.register_forward_pre_hook(lambda _, args, seen=seen: seen["before"].append(args[0])),
            tail.register_forward_pre_hook(lambda _, args, seen=seen: seen["after"].append(args[0])),
        ]
        FLUX.call(pipe, steps=STEPS, seed=seed)
        for hook in hooks:
            hook.remove()
        pictures.append(seen)
    return pictures


def test_teacache_is_fitted_to_all_adjacent_pairs() -> None:
    pipe = pipeline()
    (plan,) = tune(pipe, "teacache", [PROMPT], nfe=6, seeds=[0, 1], call=CALL)
    xs, ys = [], []
    for seen in watched(pipe, [0, 1]):
        for kept, values in ((xs, seen["modulated"]), (ys, seen["after"])):
            kept += [mean(b - a) / mean(a) for a, b in pairwise(values)]
    assert len(xs) == 2 * (STEPS - 1)
    expected = np.polynomial.Polynomial.fit(xs, ys, 4)
    at = np.linspace(min(xs), max(xs), 20)
    np.testing.assert_allclose(np.polyval(plan.options["coefficients"], at), expected(at), rtol=1e-3)


def test_magcache_ratios_are_the_mean_over_tokens_and_pictures() -> None:
    pipe = pipeline()
    (plan,) = tune(pipe, "magcache", [PROMPT], nfe=6, seeds=[0, 1], call=CALL, limit=5)
    ratios = []
    for seen in watched(pipe, [0, 1]):
        norms = [torch.linalg.vector_norm(b - a, dim=-1) for a, b in zip(seen["before"], seen["after"], strict=True)]
        ratios.append([1.0] + [float((b / a).mean()) for a, b in pairwise(norms)])
    np.testing.assert_allclose(plan.options["ratios"], np.mean(ratios, axis=0), rtol=1e-4)


def test_changes_and_magnitudes_by_hand() -> None:
    changes, magnitudes = Changes(), Magnitudes()
    for step, (signal, output) in enumerate([(2.0, 10.0), (3.0, 15.0), (1.5, 12.0)]):
        changes.learn(torch.tensor([signal]), (torch.tensor([output]),), None)
        magnitudes.skips(step + 4, torch.tensor([signal]), False)
        magnitudes.learn(torch.tensor([signal]), (torch.tensor([[[output, 0.0], [0.0, 4.0]]]),), None)
    assert changes.pairs == [(0.5, 0.5), (0.5, pytest.approx(0.2))]
    assert magnitudes.ratios == {5: pytest.approx((1.5 + 1) / 2), 6: pytest.approx((0.8 + 1) / 2)}


@pytest.mark.parametrize(
    ("method", "options"),
    [("teacache", {}), ("magcache", {}), ("easycache", {"warmup": 2}), ("first-block-cache", {})],
)
def test_the_wanted_evaluations_are_reached_and_a_plan_does_as_it_says(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pipe = pipeline()
    runs: list[str] = []
    plans = tune(pipe, method, [PROMPT], nfe=[7, 5], call=CALL, on_run=runs.append, **options)
    file = tmp_path / "plan.json"
    for wanted, plan in zip((7, 5), plans, strict=True):
        assert plan.record["wanted_nfe"] == wanted
        assert plan.record["nfe"] == wanted
        assert plan.options.items() >= options.items()
        file.write_text(json.dumps(plan.to_dict()), encoding="utf-8")
        for given in (file, str(file), plan, plan.to_dict()):
            with spectrum_diffusion.enable(pipe, plan=given) as handle:
                FLUX.call(pipe, steps=STEPS)
                summary = handle.summary()
            assert (summary.method, summary.nfe, summary.steps) == (method, wanted, STEPS)
    assert runs.count("calibration") == (method in ("teacache", "magcache"))
    assert plans[0].options["threshold"] < plans[1].options["threshold"]
    assert plans[0].record["provenance"] == {"prompts": [sorted(PROMPT)], "seeds": [0], "call": CALL}


def test_all_steps_can_be_wanted() -> None:
    (plan,) = tune(pipeline(), "first-block-cache", [PROMPT], nfe=STEPS, call=CALL)
    assert plan.options["threshold"] == 0
    assert plan.record["nfe"] == STEPS


def test_a_number_between_two_that_can_be_is_told() -> None:
    # With these ratios the errors of the steps are alike, so that skipping jumps from every second to every third.
    with pytest.warns(SpectrumWarning, match=r"no threshold brings magcache to nfe=8 .* the nearest is [67]"):
        (plan,) = tune(
            pipeline(), "magcache", [PROMPT], nfe=8, call=CALL, ratios=[1.0, *[0.9] * 11], limit=100, retention=0.0
        )
    assert plan.record["nfe"] != 8


@pytest.mark.parametrize("nfe", [[6, 1], 13])
def test_a_number_out_of_reach_is_refused(nfe: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"out of reach of teacache, which evaluates 2 … 12 of 12 steps"):
        tune(pipeline(), "teacache", [PROMPT], nfe=nfe, call=CALL)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "fora"}, "fora has no threshold to tune: tune one of teacache"),
    ({"method": "teacash"}, "did you mean 'teacache'"),
    ({"threshold": 0.1}, "threshold is what tune determines"),
    ({"limit": 3}, "teacache has no option 'limit'"),
    ({"nfe": 0}, "nfe=0 is out of range"),
    ({"nfe": 2.5}, "nfe=2.5 is not an integer"),
    ({"prompts": []}, "prompts must be a non-empty list"),
    ({"prompts": "red apple"}, "prompts must be a non-empty list"),
    ({"seeds": []}, "seeds must be a non-empty list"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    arguments = {"method": "teacache", "prompts": [PROMPT], "call": CALL, **given}
    with pytest.raises(InvalidOptionError, match=message):
        tune(pipeline(), arguments.pop("method"), arguments.pop("prompts"), **arguments)


def test_a_model_without_a_residual_is_refused_and_nothing_is_left() -> None:
    entry = PIPELINES["sdxl"]
    pipe = entry.build()
    with pytest.raises(UnsupportedModelError, match="U-Net"):
        tune(pipe, "teacache", [dict(entry.family.inputs)], call=CALL)
    assert torch.equal(entry.call(pipe), entry.call(entry.build()))


@pytest.mark.parametrize("name", ["wan22", "flux-true-cfg"])
def test_branches_and_experts_are_pooled(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    inputs = {**entry.family.inputs, **entry.arguments}
    (plan,) = tune(pipe, "magcache", [inputs], nfe=8, call=CALL)
    assert len(plan.options["ratios"]) == STEPS
    with spectrum_diffusion.enable(pipe, plan=plan) as handle:
        entry.call(pipe, steps=STEPS)
        assert handle.summary().nfe == plan.record["nfe"]


PLAN = {"method": "first-block-cache", "options": {"threshold": 0.3}, "model": "FluxTransformer2DModel-4x32"}


def test_what_is_given_beside_a_plan_wins() -> None:
    pipe = pipeline()
    with spectrum_diffusion.enable(pipe, plan=PLAN, warmup=3) as handle:
        assert handle.method.options() == {"site": "first_block", "threshold": 0.3, "warmup": 3}
    with spectrum_diffusion.enable(pipe, "first-block-cache", plan=PLAN, threshold=0.5) as handle:
        assert handle.method.options()["threshold"] == 0.5


WRONG_PLANS: list[tuple[Any, dict[str, Any], str]] = [
    (PLAN, {"method": "teacache"}, "method='teacache' contradicts the plan, which is for first-block-cache"),
    (PLAN, {"method": "spectrum"}, "method='spectrum' contradicts the plan, which is for first-block-cache"),
    (PLAN, {"interval": 2}, "first-block-cache has no option 'interval'"),
    (
        {**PLAN, "model": "WanTransformer3DModel-40x5120"},
        {},
        "WanTransformer3DModel-40x5120, but this denoiser is Flux",
    ),
    ({**PLAN, "options": {"threshold": -1}}, {}, "threshold=-1 is out of range"),
    ({**PLAN, "format": 3}, {}, "format 3"),
    ({"method": "teacache"}, {}, "this dict is not a plan, which has the keys method, options and model"),
    ({**PLAN, "options": 3}, {}, "is not a plan"),
    ("none.json", {}, "plan='none.json' cannot be read"),
    (7, {}, "plan='7' cannot be read"),
]


@pytest.mark.parametrize(("plan", "given", "message"), WRONG_PLANS)
def test_wrong_plans(plan: Any, given: dict[str, Any], message: str) -> None:
    pipe = pipeline()
    with pytest.raises(InvalidOptionError, match=message):
        spectrum_diffusion.enable(pipe, plan=plan, **given)
    assert torch.equal(FLUX.call(pipe), FLUX.call(pipeline()))


@pytest.mark.filterwarnings("always")
def test_a_plan_for_another_number_of_steps_warns_once_at_the_first_run() -> None:
    pipe = pipeline()
    message = f"the plan was made for 50 steps, but this run has {STEPS}: .* `spectrum tune --steps {STEPS}`"
    with spectrum_diffusion.enable(pipe, plan={**PLAN, "steps": 50}):
        with pytest.warns(SpectrumWarning, match=message) as caught:
            FLUX.call(pipe, steps=STEPS)
            FLUX.call(pipe, steps=STEPS)
    assert len(caught) == 1
    for known in ({"steps": STEPS}, {}):
        with spectrum_diffusion.enable(pipe, plan={**PLAN, **known}), warnings.catch_warnings():
            warnings.simplefilter("error", SpectrumWarning)
            FLUX.call(pipe, steps=STEPS)


def test_a_loop_of_ones_own_hears_of_another_number_of_steps_too() -> None:
    model = pipeline().transformer
    with spectrum_diffusion.enable(model, plan={**PLAN, "steps": 50}) as handle:
        with pytest.warns(SpectrumWarning, match="made for 50 steps, but this run has 8"), handle.run(8):
            pass


def test_a_plan_without_a_method_beside_it_and_its_own_method_agree() -> None:
    for given in ({}, {"method": "first-block-cache"}):
        with spectrum_diffusion.enable(pipeline(), plan=PLAN, **given) as handle:
            assert type(handle.method).__name__ == "FirstBlockCache"
    with spectrum_diffusion.enable(pipeline()) as handle:
        assert type(handle.method).__name__ == "Spectrum"


def test_a_file_that_is_no_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    for text, message in (("[1]", "is not a plan"), ("{", "cannot be read")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidOptionError, match=message):
            read_plan(file)


def test_a_plan_keeps_what_it_does_not_know() -> None:
    assert read_plan({**PLAN, "weights": [[1.0]]}).to_dict() == {"format": 2, **PLAN, "weights": [[1.0]]}


@pytest.mark.slow
def test_the_shipped_calibration_is_what_its_command_makes() -> None:
    from benchmarks import calibrations

    data = json.loads(calibrations.DATA.read_text(encoding="utf-8"))
    assert calibrations.shown(data) == calibrations.DATA.read_text(encoding="utf-8")
    model, entry = calibrations.measured("magcache", ("ratios",))
    np.testing.assert_allclose(entry["ratios"], data["magcache"][model]["ratios"], rtol=1e-2)
