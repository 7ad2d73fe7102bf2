"""NaN or infinity at one step: reported with the number of the step, and kept out of every later forecast."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from test_changes import METHODS, STEPS

import spectrum_diffusion
from spectrum_diffusion import SpectrumWarning
from spectrum_diffusion.core.history import History, keep_finite

ENTRY = PIPELINES["flux"]
SITES = [site for site in METHODS if site != "observed"]


class Poison:
    """Puts a value into one number of the last block's projection, at the second step that is evaluated."""

    def __init__(self, pipe: Any, value: float, sample: int = 0) -> None:
        self.value, self.sample, self.now, self.step = value, sample, 0, None
        pipe.transformer.single_transformer_blocks[-1].proj_out.register_forward_hook(self._spoil)

    def _spoil(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if self.step is None and self.now:
            self.step = self.now
        if self.step != self.now or not self.now:
            return output
        spoilt = output.clone()
        spoilt[self.sample, -1, 0] = self.value
        return spoilt

    def repair(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """A user's callback that goes on where the latents have become NaN."""
        self.now = step + 1
        return {**tensors, "latents": tensors["latents"].nan_to_num(0.0)}


@pytest.mark.filterwarnings("ignore:a run of")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("site", SITES)
def test_it_is_reported_at_its_step_and_not_smeared_over_the_rest(site: str, value: float) -> None:
    pipe = ENTRY.build()
    method, options = METHODS[site]
    poison = Poison(pipe, value)
    with spectrum_diffusion.enable(pipe, method, **options) as handle:
        with pytest.warns(SpectrumWarning, match="gave NaN or infinite values at step") as seen:
            latents = ENTRY.call(pipe, steps=STEPS, callback_on_step_end=poison.repair)
        notes = [note for note in handle.summary().notes if "not finite" in note]
    assert torch.isfinite(latents).all()
    assert notes == [f"values that are not finite (NaN or infinite) at step {poison.step}"]
    assert any(f"at step {poison.step}, which no forecast uses" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("site", ["output", "last_block", "corrected", "sampler"])
def test_the_other_samples_of_the_batch_are_as_without_it(site: str) -> None:
    method, options = METHODS[site]
    pipe = ENTRY.build()
    poison = Poison(pipe, 0.0)  # counts the steps alike
    poison.value = math.nan
    twin = ENTRY.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectrumWarning)
        spectrum_diffusion.enable(pipe, method, **options)
        spectrum_diffusion.enable(twin, method, **options)
        spoilt = ENTRY.call(pipe, steps=STEPS, num_images_per_prompt=2, callback_on_step_end=poison.repair)
        clean = ENTRY.call(twin, steps=STEPS, num_images_per_prompt=2, callback_on_step_end=repair)
    assert not torch.equal(spoilt[0], clean[0])
    assert torch.equal(spoilt[1], clean[1])


def repair(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, "latents": tensors["latents"].nan_to_num(0.0)}


def test_without_a_repair_the_result_is_nan_as_without_the_library() -> None:
    pipe = ENTRY.build()
    poison = Poison(pipe, math.nan)

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        poison.now = step + 1
        return tensors

    spectrum_diffusion.enable(pipe, "paper", warmup=2)
    with pytest.warns(SpectrumWarning, match=r"transformer gave NaN or infinite values at step 1, "):
        assert ENTRY.call(pipe, steps=STEPS, callback_on_step_end=count).isnan().any()


def test_a_clean_run_says_nothing_and_an_own_loop_tells_too() -> None:
    class Doubler(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: int) -> torch.Tensor:
            return x * (math.inf if t == 2 else 2.0)

    model = Doubler().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectrumWarning)
        with spectrum_diffusion.enable(model, "reuse", site="output", warmup=2, interval=3) as handle:
            with handle.run(total_steps=8) as run, torch.no_grad():
                for step in range(8):
                    run.step(step)
                    model(torch.ones(1, 3), -step)
            assert not handle.summary().notes
    with spectrum_diffusion.enable(model, "reuse", site="output", evaluated=[0, 2, 5]) as handle:
        with pytest.warns(SpectrumWarning, match="at step 2, which"):
            with handle.run(total_steps=8) as run, torch.no_grad():
                for step in range(8):
                    run.step(step)
                    model(torch.ones(1, 3), step)


def test_what_is_kept_instead() -> None:
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, math.nan], [7.0, 8.0]])
    kept = History()
    kept.append(0, (first,))
    kept.append(1, (second,))
    assert kept.features[1][0].tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert kept.finite[0].tolist() == [False, True]
    assert second.isnan().any(), "the model's own tensor stays"
    alone = torch.tensor([[math.inf, 1.0]])
    assert keep_finite(alone, None).tolist() == [False]
    assert alone.tolist() == [[0.0, 1.0]]
    half = torch.full((2, 70_000), 60_000.0, dtype=torch.float16)  # a sum of it does not fit float16
    assert keep_finite(half, None).all()
    assert keep_finite(torch.tensor([1, 2]), None).all()
