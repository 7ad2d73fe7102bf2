"""Schedules: the paper's rows to the letter, what holds for every schedule, and the search for a speed-up."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum_diffusion.core import schedule
from spectrum_diffusion.core.schedule import (
    Noise,
    adaptive,
    explicit,
    fewest_nodes,
    for_speedup,
    nodes,
    pace,
    speedup_warmup,
    uniform,
)
from spectrum_diffusion.errors import InvalidOptionError, SpectrumError

PAPER_14 = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
PAPER_10 = [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]

# Lower edges of the slopes at N = 2, W = 5, T = 50, rounded up to two decimals, and the evaluations there.
EDGES = [
    (0.0, 27), (0.05, 26), (0.06, 25), (0.08, 24), (0.10, 23), (0.12, 22), (0.15, 21), (0.17, 20), (0.22, 19),
    (0.25, 18), (0.34, 17), (0.40, 16), (0.50, 15), (0.67, 14), (0.88, 13), (1.17, 12), (1.67, 11), (2.4, 10),
    (3.75, 9), (6.5, 8),
]  # fmt: skip

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
totals = st.integers(1, 300)
intervals = st.integers(1, 40)
warmups = st.integers(1, 40)
slopes = st.floats(0, 50, allow_nan=False)


@pytest.mark.parametrize(("slope", "steps"), [(0.75, PAPER_14), (3, PAPER_10), (3.0, PAPER_10)])
def test_papers_adaptive_rows(slope, steps):
    assert adaptive(50, interval=2, warmup=5, slope=slope) == steps


def test_defaults_are_the_papers():
    assert adaptive(50) == PAPER_14


@pytest.mark.parametrize(
    ("interval", "warmup", "nfe"),
    [(4, 1, 13), (4, 3, 14), (4, 5, 16), (6, 1, 9), (6, 3, 10), (6, 5, 12), (8, 5, 10)],
)
def test_papers_uniform_rows(interval, warmup, nfe):
    steps = uniform(50, interval, warmup)
    assert steps == [*range(warmup), *range(warmup - 1 + interval, 50, interval)]
    assert len(steps) == nfe
    assert steps == adaptive(50, interval, warmup, slope=0)


@pytest.mark.parametrize(("slope", "nfe"), EDGES)
def test_evaluations_by_slope(slope, nfe):
    assert len(adaptive(50, 2, 5, slope)) == nfe


@pytest.mark.parametrize(("before", "edge"), list(pairwise(EDGES)))
def test_a_hundredth_below_an_edge_has_the_evaluations_before_it(before, edge):
    assert len(adaptive(50, 2, 5, edge[0] - 0.01)) == before[1]


@pytest.mark.parametrize("total", range(1, 9))
def test_no_more_steps_than_warmup_evaluates_all(total):
    assert adaptive(total, interval=3, warmup=8, slope=2.0) == list(range(total))


def test_one_step_beyond_the_warmup():
    assert adaptive(9, interval=1, warmup=8) == list(range(9))
    assert adaptive(9, interval=2, warmup=8) == list(range(8))


@SETTINGS
@given(totals, intervals, warmups, slopes)
def test_a_schedule_is_sorted_unique_in_range_and_starts_with_0(total, interval, warmup, slope):
    steps = adaptive(total, interval, warmup, slope)
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] < total
    assert steps[: min(warmup, total)] == list(range(min(warmup, total)))
    assert all(type(step) is int for step in steps)


@SETTINGS
@given(totals, intervals, warmups, slopes)
def test_distances_follow_the_formula_up_to_the_end(total, interval, warmup, slope):
    steps = adaptive(total, interval, warmup, slope)
    later = [warmup - 1, *(step for step in steps if step >= warmup)]
    gaps = [math.floor(interval + j * slope) for j in range(len(later))]
    assert [b - a for a, b in pairwise(later)] == gaps[:-1]
    assert later[-1] + gaps[-1] >= total


@SETTINGS
@given(totals, intervals, warmups, slopes, slopes)
def test_evaluations_fall_as_slope_grows(total, interval, warmup, one, other):
    low, high = sorted((one, other))
    assert len(adaptive(total, interval, warmup, low)) >= len(adaptive(total, interval, warmup, high))


@SETTINGS
@given(totals, intervals, warmups, slopes)
def test_evaluations_fall_as_interval_grows(total, interval, warmup, slope):
    shorter = adaptive(total, interval, warmup, slope)
    assert len(shorter) >= len(adaptive(total, interval + 1, warmup, slope))


def test_huge_slopes_end():
    assert adaptive(50, 2, 5, 1e300) == [0, 1, 2, 3, 4, 6]


@SETTINGS
@given(st.sets(st.integers(1, 60)))
def test_explicit_gives_the_steps_back(later):
    steps = [0, *sorted(later)]
    assert explicit(61, steps) == steps
    assert explicit(61, iter(steps)) == steps
    assert explicit(61, np.array(steps)) == steps
    if later:
        with pytest.raises(InvalidOptionError, match=f"names step {steps[-1]}"):
            explicit(steps[-1], steps)


@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ([], "must start with step 0"),
        ([1, 2], "must start with step 0"),
        ([0, 2, 1], "step 1 follows 2: sort it"),
        ([0, 3, 3], "step 3 follows 3: sort it and drop repeats"),
        ([0, 1.5], "evaluated step=1.5 is not an integer"),
        ([0, True], "evaluated step=True is not an integer"),
        ([0, -1], "evaluated step=-1 is out of range"),
        ("0,1", "evaluated must be a list of step indices, got '0,1'"),
        (7, "evaluated must be a list of step indices, got 7"),
        ([0, 10], "names step 10, but the run has 10 steps (0 … 9)"),
    ],
)
def test_wrong_explicit_schedules(evaluated, message):
    with pytest.raises(InvalidOptionError) as caught:
        explicit(10, evaluated)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "total=0 is out of range: give a whole number ≥ 1"),
        ({"total": 50.0}, "total=50.0 is not an integer"),
        ({"total": "50"}, "total='50' is not an integer"),
        ({"total": 50, "interval": 0}, "interval=0 is out of range"),
        ({"total": 50, "interval": True}, "interval=True is not an integer"),
        ({"total": 50, "warmup": 0}, "warmup=0 is out of range"),
        ({"total": 50, "slope": -0.1}, "slope=-0.1 is out of range: give a finite number within 0 … ∞"),
        ({"total": 50, "slope": math.inf}, "slope=inf is out of range"),
        ({"total": 50, "slope": math.nan}, "slope=nan is out of range"),
        ({"total": 50, "slope": "fast"}, "slope='fast' is not a number"),
    ],
)
def test_wrong_spacing(arguments, message):
    with pytest.raises(InvalidOptionError) as caught:
        adaptive(**arguments)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SpectrumError)


def test_warmup_of_the_speedup_search():
    assert [speedup_warmup(total) for total in (1, 2, 3, 29, 30, 50, 1000)] == [1, 2, 2, 2, 3, 5, 100]


@pytest.mark.parametrize(("speedup", "steps"), [(50 / 14, PAPER_14), (5, PAPER_10), (5.0, PAPER_10), (3.55, PAPER_14)])
def test_speedup_finds_the_papers_schedules(speedup, steps):
    assert for_speedup(50, speedup) == steps


def reachable(total: int) -> set[int]:
    """Every number of evaluations of a run, over all intervals and a grid with a slope between any two edges.

    ``floor(N + jα)`` changes at fractions k/j with j < T only, and two of them lie at least 1/T² apart.
    """
    edges = sorted({k / j for j in range(1, total) for k in range(total + 1)} | {0.0})
    grid = [edge + 0.3 / total**2 for edge in edges] + [0.0]
    warmup = min(total, max(2, total // 10))
    return {len(adaptive(total, n, warmup, slope)) for n in range(1, total + 1) for slope in grid}


def trailing(steps: list[int], total: int) -> int:
    """How many steps after the last evaluated one are forecast."""
    return total - 1 - steps[-1]


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 10, 13, 20])
def test_speedup_is_the_smallest_reachable(total):
    highest = reach(total)
    counts = {n for n in reachable(total) if total / n <= highest + 1e-4}
    wanted = {total / n for n in range(1, total + 1)} | set(np.linspace(1, highest, 37))
    for speedup in sorted(x for x in wanted if 1 <= x <= highest):
        best = min(total / n for n in counts if total / n >= speedup - 1e-9)
        steps = for_speedup(total, speedup)
        assert total / len(steps) == best, (total, speedup)
        assert steps[: speedup_warmup(total)] == list(range(speedup_warmup(total)))


def reach(total: int, warmup: int | None = None) -> float:
    """The highest speedup, as the error names it."""
    with pytest.raises(InvalidOptionError) as caught:
        for_speedup(total, 1e6, warmup)
    return float(str(caught.value).split("1 … ")[1].split(". ")[0])


@pytest.mark.parametrize("total", [*range(1, 60), 100, 333, 1000])
def test_no_speedup_forecasts_more_than_the_last_third(total):
    assert for_speedup(total, 1) == list(range(total))
    for warmup in (None, 1, 2, 5):
        for speedup in np.linspace(1, reach(total, warmup), 9):
            steps = for_speedup(total, speedup, warmup)
            assert steps == sorted(set(steps))
            assert steps[0] == 0
            assert trailing(steps, total) <= total / 3
            assert total / len(steps) >= speedup * (1 - 1e-9)


def test_speedup_that_ruined_the_image_is_out_of_reach_and_within_it_with_a_shorter_warmup():
    with pytest.raises(
        InvalidOptionError, match=r"speedup=8 is out of reach of 50 steps: give a number within 1 … 7\.14"
    ):
        for_speedup(50, 8)
    assert for_speedup(50, 50 / 7) == [0, 1, 2, 3, 4, 6, 35]
    assert for_speedup(50, 8, warmup=2) == [0, 1, 3, 10, 23, 41]
    assert for_speedup(50, 50 / 4, warmup=2)[:2] == [0, 1]


def test_warmup_beside_speedup_is_kept():
    for warmup in (1, 2, 3, 5, 8):
        steps = for_speedup(50, 4, warmup)
        assert steps[: warmup + 1] == [*range(warmup), warmup + 1]
        assert len(steps) == 12
    assert for_speedup(50, 5, speedup_warmup(50)) == for_speedup(50, 5)
    assert for_speedup(3, 1, warmup=10) == [0, 1, 2]
    with pytest.raises(InvalidOptionError, match="warmup=0 is out of range"):
        for_speedup(50, 4, warmup=0)


def test_speedup_keeps_to_the_interval_nearest_to_the_papers():
    for nfe in range(8, 27):
        steps = for_speedup(50, 50 / nfe)
        assert len(steps) == nfe
        assert steps[5] - steps[4] == 2


@pytest.mark.parametrize(
    ("total", "speedup", "span"),
    [(50, 0.99, "1 … 7.1428."), (50, 7.15, "1 … 7.1428."), (50, -3, "1 … 7.1428."), (50, 1e9, "1 … 7.1428."),
     (1, 1.01, "1 … 1."), (20, 10, "1 … 5."), (1000, 10, "1 … 9.8039.")],
)  # fmt: skip
def test_speedup_out_of_range_names_the_range(total, speedup, span):
    with pytest.raises(InvalidOptionError) as caught:
        for_speedup(total, speedup)
    assert f"speedup={speedup!r}" in str(caught.value)
    assert f"{total} steps" in str(caught.value)
    assert span in str(caught.value)


@pytest.mark.parametrize("speedup", [math.nan, math.inf, -math.inf])
def test_speedup_that_is_not_finite_names_the_range(speedup):
    with pytest.raises(InvalidOptionError) as caught:
        for_speedup(50, speedup)
    assert f"speedup={speedup}" in str(caught.value)
    assert "1 … 7.1428." in str(caught.value)


@pytest.mark.parametrize("total", [20, 23, 50, 200, 1000])
def test_upper_end_that_the_message_names_can_be_given(total):
    assert len(for_speedup(total, reach(total))) == speedup_warmup(total) + 2


@pytest.mark.parametrize("speedup", ["4", None, True, 1j])
def test_speedup_that_is_no_number(speedup):
    with pytest.raises(InvalidOptionError, match="is not a number"):
        for_speedup(50, speedup)


@pytest.mark.parametrize("total", [0, 1001])
def test_length_of_run_out_of_range(total):
    with pytest.raises(InvalidOptionError, match=f"total={total} is out of range"):
        for_speedup(total, 1)


def test_check_number_and_integer_take_numpy_scalars():
    assert schedule.check_integer("n", np.int64(3), least=1) == 3
    assert schedule.check_number("x", np.float32(0.5), least=0.0, most=1.0) == 0.5


@pytest.mark.parametrize("slope", [10**400, np.array([1.0, 2.0])], ids=["huge", "two"])
def test_numbers_that_no_float_holds_are_refused(slope):
    with pytest.raises(InvalidOptionError, match="slope="):
        adaptive(50, slope=slope)


def test_rows_in_a_list_of_steps_are_refused():
    with pytest.raises(InvalidOptionError, match="evaluated"):
        explicit(50, np.array([[0, 1], [2, 3]]))


def flow(total: int, shift: float, size: int) -> Noise:
    """The noise of flow matching with a static shift, written out."""
    sigmas = [shift * (1 - i / total) / (1 + (shift - 1) * (1 - i / total)) for i in range(total)]
    return Noise(tuple(1e9 if sigma == 1 else sigma / (1 - sigma) for sigma in sigmas), size)


NOISES = {
    "unknown": lambda total: None,
    "shift 0.25": lambda total: flow(total, 0.25, 576),
    "shift 3": lambda total: flow(total, 3, 16 * 128 * 128),
    "shift 12": lambda total: flow(total, 12, 16 * 21 * 90 * 90),
    "added noise": lambda total: Noise(tuple(700 * (1 - i / total) ** 7 for i in range(total)), 4 * 64 * 64),
    "no signal at the start": lambda total: Noise(tuple(math.inf if i == 0 else 5 / i for i in range(total)), 1024),
    "one level": lambda total: Noise((1.0,) * total, 4 * 64 * 64),
    "without noise": lambda total: Noise((0.0,) * total, 4 * 64 * 64),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("total", [1, 2, 8, 28, 50, 100, 1000])
def test_nodes(total: int, name: str) -> None:
    noise = NOISES[name](total)
    for count in {1, 2, 3, total // 4, total // 2, total} - {0}:
        for warmup in (1, 2):
            if max(count, warmup) > total or warmup > count:
                continue
            steps = nodes(total, count, warmup, noise)
            assert len(steps) == count
            assert steps == sorted(set(steps))
            assert steps[:warmup] == list(range(warmup))
            assert count == warmup or steps[-1] == total - 1


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("warmup", [1, 3])
def test_no_more_than_a_third_is_forecast_at_once_whatever_the_noise(warmup: int, name: str) -> None:
    for total in (3, 8, 12, 28, 50, 100, 1000):
        fewest = fewest_nodes(total, warmup)
        for count in range(fewest, min(fewest + 6, total) + 1):
            steps = nodes(total, count, warmup, NOISES[name](total))
            assert len(set(steps)) == count
            assert steps[:warmup] == list(range(warmup))
            assert all(3 * (after - before - 1) <= total for before, after in pairwise([*steps, total]))


def test_fewest_nodes_are_as_few_as_any() -> None:
    for total in range(3, 200):
        count = fewest_nodes(total)
        even = [round(i * (total - 1) / (count - 2)) for i in range(count - 1)] if count > 2 else [0]
        assert any(3 * (after - before - 1) > total for before, after in pairwise([*even, total]))


def test_pace_rises_and_fastest_where_the_noise_is_decided() -> None:
    for make in NOISES.values():
        if (noise := make(50)) is not None and len(set(noise.ratios)) > 1:
            along = pace(noise)
            assert along[0] == 0
            assert all(after > before for before, after in pairwise(along))
    ratios = (1e9, 64.0, 8.0, 1.0, 0.1)
    along = pace(Noise(ratios, size=64**2))
    removed = [before / (1 + before) - after / (1 + after) for before, after in pairwise(ratios)]
    fallen = [0.0, math.log(8), math.log(8), 0.0]  # between √n and 1
    each = [0.5 / 4 + 0.5 * share / sum(removed) + 0.2 * log for share, log in zip(removed, fallen, strict=True)]
    assert [after - before for before, after in pairwise(along)] == pytest.approx(each)


def test_steps_that_remove_little_noise_get_few_evaluations() -> None:
    """A shift below 1 removes most of the noise in the first steps, one above 1 in the last ones."""
    early, even, late = (nodes(50, 14, noise=flow(50, shift, 1024)) for shift in (0.28, 1.0, 3.0))
    in_the_end = [sum(step >= 35 for step in steps) for steps in (early, even, late)]
    at_the_start = [sum(step < 10 for step in steps) for steps in (early, even, late)]
    assert in_the_end[0] < in_the_end[1] < in_the_end[2]
    assert at_the_start[0] > at_the_start[1] > at_the_start[2]


def test_nodes_are_near_those_that_a_search_found_on_flux_at_full_size() -> None:
    """DPCache (2602.22654), 13 of 50 steps of FLUX.1-dev at 1024² pixels: shift e^1.15, latents of 128 × 128."""
    searched = [0, 1, 2, 4, 7, 12, 19, 24, 30, 36, 41, 45, 49]
    ours = nodes(50, 13, noise=flow(50, math.exp(1.15), 16 * 128 * 128))
    assert max(abs(a - b) for a, b in zip(ours, searched, strict=True)) <= 2
