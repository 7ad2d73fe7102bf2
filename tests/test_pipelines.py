"""The tiny pipelines and the slow Algorithm 1 are themselves right: the other tests rest on them."""

import socket
from typing import Any

import numpy as np
import pytest
import torch
from algorithm1 import basis, forecast, slow_run, slow_spectrum
from pipelines import PIPELINES, PipelineEntry

EVALUATED = (0, 1, 2, 3, 4, 7)

every_pipeline = pytest.mark.parametrize("entry", PIPELINES.values(), ids=PIPELINES.keys())


def _calls_by_step(done: dict[tuple[str, int], dict[int, bool]]) -> dict[int, int]:
    steps = [step for branch in done.values() for step in branch]
    return {step: steps.count(step) for step in sorted(set(steps))}


@every_pipeline
def test_two_builds_and_two_calls_are_equal_without_network(
    entry: PipelineEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", None)
    state = torch.get_rng_state()
    pipe = entry.build()
    first, second = entry.call(pipe), entry.call(pipe)
    assert torch.equal(first, second)
    assert torch.equal(first, entry.call(entry.build()))
    # A refiner goes on from the latents it is given and draws no noise of its own.
    assert torch.equal(first, entry.call(pipe, seed=1)) == ("denoising_start" in entry.arguments)
    assert torch.isfinite(first).all()
    assert first.dtype == torch.float32
    assert torch.equal(state, torch.get_rng_state())


@every_pipeline
def test_denoisers_are_in_evaluation_mode_and_have_no_silent_parameter(entry: PipelineEntry) -> None:
    pipe = entry.build()
    for name in entry.denoisers:
        denoiser = getattr(pipe, name)
        assert not denoiser.training
        assert isinstance(getattr(denoiser, entry.tail), torch.nn.Module)
        assert all(parameter.any() for parameter in denoiser.parameters())


@every_pipeline
@pytest.mark.parametrize("steps", [7, 10])
def test_steps_and_branches_are_as_the_entry_says(entry: PipelineEntry, steps: int) -> None:
    total = entry.total(steps)
    pipe = entry.build()
    output, done = slow_run(entry, pipe, range(total), total, steps=steps)
    calls = _calls_by_step(done)
    assert list(calls) == list(range(total))
    assert max(calls.values()) == entry.branches
    assert {denoiser for denoiser, _ in done} == set(entry.denoisers)
    assert torch.equal(output, entry.call(pipe, steps=steps)), "everything evaluated must change nothing"


@every_pipeline
def test_skipping_changes_the_result_and_leaves_no_trace(entry: PipelineEntry) -> None:
    total = entry.total(12)
    pipe = entry.build()
    plain = entry.call(pipe, steps=12)
    skipped = slow_spectrum(entry, pipe, EVALUATED, total, steps=12)
    assert torch.isfinite(skipped).all()
    assert (skipped - plain).abs().max() > 1e-4 * plain.abs().max()
    assert torch.equal(entry.call(pipe, steps=12), plain)
    assert "step" not in vars(pipe.scheduler)
    for name in entry.denoisers:
        assert not getattr(getattr(pipe, name), entry.tail)._forward_pre_hooks


@every_pipeline
def test_the_comparison_would_notice_a_wrong_total(entry: PipelineEntry) -> None:
    """Library and Algorithm 1 are compared to 1e-5: their common T must matter by more than that."""
    total = entry.total(12)
    pipe = entry.build()
    right = slow_spectrum(entry, pipe, EVALUATED, total, steps=12)
    wrong = slow_spectrum(entry, pipe, EVALUATED, total + 1, steps=12)
    assert (right - wrong).abs().max() > 5e-5 * right.abs().max()


def test_an_exception_leaves_no_trace() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    plain = entry.call(pipe)

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        slow_spectrum(entry, pipe, EVALUATED, 10, callback_on_step_end=fail)
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(entry.call(pipe), plain)


def test_the_second_expert_evaluates_until_its_own_history_suffices() -> None:
    entry = PIPELINES["wan22"]
    pipe = entry.build()
    _, done = slow_run(entry, pipe, EVALUATED, 12, steps=12, min_history=3)
    first, second = done["transformer", 0], done["transformer_2", 0]
    assert sorted([*first, *second]) == list(range(12))
    assert min(second) > max(first) > 5
    evaluated = [step for step, evaluate in second.items() if evaluate]
    assert evaluated == sorted(second)[:3]
    assert done["transformer_2", 0] == done["transformer_2", 1]


def test_guidance_that_stops_and_starts_midway() -> None:
    runs = {}
    for name in ("wan-guidance-stops", "wan-guidance-starts"):
        entry = PIPELINES[name]
        runs[name] = slow_run(entry, entry.build(), EVALUATED, 10)[1]["transformer", 1]
    assert list(runs["wan-guidance-stops"]) == [0, 1, 2, 3, 4]
    assert runs["wan-guidance-starts"] == {5: True, 6: True, 7: True, 8: False, 9: False}


def test_a_batch_that_shrinks_starts_a_new_history() -> None:
    entry = PIPELINES["sdxl-guidance-interval"]
    _, done = slow_run(entry, entry.build(), EVALUATED, 10)
    evaluated = [step for step, evaluate in done["unet", 0].items() if evaluate]
    assert evaluated == [0, 1, 2, 3, 4, 6, 7]


def test_skip_layer_guidance_is_a_second_call_for_part_of_the_steps() -> None:
    entry = PIPELINES["sd3-skip-layer"]
    _, done = slow_run(entry, entry.build(), range(10), 10)
    assert list(done["transformer", 1]) == [1, 2, 3, 4, 5, 6, 7]


def test_an_added_callback_comes_after_the_entrys_own() -> None:
    entry = PIPELINES["sdxl-guidance-interval"]
    pipe = entry.build()
    batches = []

    def record(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        batches.append(len(tensors["prompt_embeds"]))
        return tensors

    assert torch.equal(entry.call(pipe, callback_on_step_end=record), entry.call(pipe))
    assert batches == [2] * 5 + [1] * 5


def test_basis_at_known_points() -> None:
    """T2 = 2x² - 1, T3 = 4x³ - 3x, T4 = 8x⁴ - 8x² + 1 at x = -1, -1/2, 0."""
    expected = [[1, -1, 1, -1, 1], [1, -0.5, -0.5, 1, -0.5], [1, 0, -1, 0, 1]]
    np.testing.assert_allclose(basis([0, 1, 2], total=4, degree=4), expected, atol=1e-12)


def test_forecast_by_hand() -> None:
    """Degree 0: the sum of K features over K + λ."""
    features = {0: np.array([[1.0, 2.0]]), 1: np.array([[5.0, -2.0]])}
    np.testing.assert_allclose(forecast(features, 3, total=5, degree=0, ridge=0.5), [[6 / 2.5, 0.0]])


def test_forecast_is_exact_on_polynomials_as_the_ridge_vanishes() -> None:
    def cubic(step: int) -> np.ndarray:
        return np.array([step**3 - 4.0 * step, 2.0 - step**2])

    features = {step: cubic(step) for step in (0, 1, 2, 4, 7, 11)}
    np.testing.assert_allclose(forecast(features, 15, total=20, degree=4, ridge=1e-12), cubic(15), rtol=1e-6)
