"""The arithmetic behind the published tables: verdicts, cells, choices, and prompts that were not tuned on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import choice, plans
from benchmarks.marks import replace_block
from benchmarks.small_models import MODELS, shown, verdict, worst_tenth
from spectrum_diffusion.bench.prompts import load_prompts

PROMPTS = [f"prompt {number}" for number in range(16)]


def values(offset: float, spread: float = 0.0) -> dict[tuple[str, int], float]:
    """PSNR of each prompt, with an offset and a deviation that changes sign from prompt to prompt."""
    return {(prompt, 0): 30 + i + offset + spread * (-1) ** i for i, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize(
    ("offset", "spread", "mark"), [(0.5, 0.1, "+"), (-0.5, 0.1, "−"), (0.05, 2.0, "≈"), (0.0, 0.0, "≈")]
)
def test_a_verdict_is_paired_by_prompt(offset: float, spread: float, mark: str) -> None:
    # Prompts differ by 15 dB, which would hide half a decibel if they were not paired.
    assert verdict(values(offset, spread), values(0.0)) == mark


def test_a_cell_has_the_mean_and_the_mean_of_the_lowest_tenth() -> None:
    assert worst_tenth([5.0, 1.0, 3.0]) == 1.0  # at least one
    assert worst_tenth([float(n) for n in range(11)]) == 0.5  # two of eleven
    assert shown([10.0, 20.0, 60.0]) == "30.0 / 10.0"


def test_the_choice_for_a_model_does_not_see_it() -> None:
    scores = {"a": {"x": 99.0, "y": 0.0}, "b": {"x": 1.0, "y": 2.0}, "c": {"x": 1.0, "y": 2.0}}
    assert choice.best(scores, ["b", "c"]) == "y"
    assert choice.best(scores, ["a", "b", "c"]) == "x"


@pytest.mark.parametrize("model", MODELS)
def test_plans_are_measured_on_prompts_and_seeds_that_they_were_not_tuned_on(model: str) -> None:
    tuned, measured = plans.halves(load_prompts("tiny", model=model))
    assert tuned
    assert measured
    assert not {prompt.text for prompt in tuned} & {prompt.text for prompt in measured}
    assert plans.FIRST_SEED > 1000  # pairs count seeds up from 0


def test_a_row_that_a_model_lacks_is_an_empty_cell() -> None:
    default, plan = (14.0, values(0.0)), (14.0, values(1.0))
    cells = {"one": {"default / 14": default, "plan / 14": plan}, "two": {"default / 14": default}}
    assert plans.report(cells).splitlines()[-1] == "| plan / 14 | 38.5 / 31.5 + | – |"


def test_only_the_marked_block_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\n<!-- b:begin -->\nkept\n<!-- b:end -->\n")
    replace_block(page, "new", "a")
    assert page.read_text() == "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\n<!-- b:begin -->\nkept\n<!-- b:end -->\n"
