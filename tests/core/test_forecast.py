"""Forecasters: weights against independent formulas, exactness on polynomials, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from spectrum_diffusion.core.forecast import (
    blend_weights,
    chebyshev_basis,
    chebyshev_weights,
    reuse_weights,
    tau,
    taylor_weights,
    taylorseer_weights,
)
from spectrum_diffusion.core.schedule import adaptive
from spectrum_diffusion.errors import InvalidOptionError

PAPER_14 = adaptive(50)
PAPER_10 = adaptive(50, slope=3)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def cases(draw, least: int = 1):
    """Evaluated steps, a target and the length of a run."""
    total = draw(st.integers(max(least, 2), 120))
    steps = draw(st.sets(st.integers(0, total - 1), min_size=least, max_size=min(total, 30)))
    return sorted(steps), draw(st.integers(0, total - 1)), total


def ridge_forecast(evaluated, target, total, degree, ridge, H):
    """The paper's primal fit on NumPy's own basis: C = (ΦᵀΦ + λI)⁻¹ΦᵀH, read at τ*."""
    Phi = chebyshev.chebvander(2 * np.array(evaluated) / total - 1, degree)  # (K, M+1)
    C = np.linalg.solve(Phi.T @ Phi + ridge * np.eye(degree + 1), Phi.T @ H)  # (M+1, F)
    return chebyshev.chebvander(np.array([2 * target / total - 1]), degree)[0] @ C  # (F,)


def test_time_is_the_papers():
    assert tau(25, 50) == 0
    np.testing.assert_allclose(tau(np.arange(50), 50), (np.arange(50) - 25) / 25, atol=1e-15)
    np.testing.assert_allclose(tau(np.arange(8), 8), [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("degree", range(9))
def test_basis_is_numpys(degree):
    times = np.linspace(-1, 1.2, 23)
    basis = chebyshev_basis(times, degree)
    assert basis.shape == (23, degree + 1)
    np.testing.assert_allclose(basis, chebyshev.chebvander(times, degree), rtol=1e-12, atol=1e-13)


@SETTINGS
@given(cases(), st.integers(0, 8), st.floats(1e-3, 10), st.integers(0, 2**32 - 1))
def test_chebyshev_is_the_primal_ridge(case, degree, ridge, seed):
    evaluated, target, total = case
    H = np.random.default_rng(seed).standard_normal((len(evaluated), 5))  # (K, F)
    weights = chebyshev_weights(evaluated, target, total, degree, ridge)
    assert weights.shape == (len(evaluated),)
    assert weights.dtype == np.float64
    expected = ridge_forecast(evaluated, target, total, degree, ridge, H)
    np.testing.assert_allclose(weights @ H, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("evaluated", [PAPER_14, PAPER_10], ids=["14", "10"])
def test_chebyshev_is_the_primal_ridge_all_along_the_papers_schedules(evaluated):
    for target in sorted(set(range(50)) - set(evaluated)):
        known = [step for step in evaluated if step < target]
        expected = ridge_forecast(known, target, 50, 4, 0.1, np.eye(len(known)))
        np.testing.assert_allclose(chebyshev_weights(known, target, 50), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("slope", "target", "total"), [(0.75, 45, 0.73), (3, 43, 0.65)])
def test_sums_of_the_weights(slope, target, total):
    known = [step for step in adaptive(50, slope=slope) if step < target]
    assert round(float(chebyshev_weights(known, target, 50).sum()), 2) == total


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("evaluated", [PAPER_14, PAPER_10], ids=["14", "10"])
def test_chebyshev_without_ridge_is_exact_on_polynomials(evaluated, degree):
    rng = np.random.default_rng(degree)
    for target in range(50):
        polynomial = chebyshev.Chebyshev(rng.uniform(-1, 1, degree + 1))
        values = polynomial(tau(np.array(evaluated), 50))
        wanted = polynomial(tau(target, 50))
        assert chebyshev_weights(evaluated, target, 50, 4, 0.0) @ values == pytest.approx(wanted, abs=1e-10)
        assert chebyshev_weights(evaluated, target, 50, degree, 0.0) @ values == pytest.approx(wanted, abs=1e-10)


def test_chebyshev_is_exact_in_the_limit_of_no_ridge():
    polynomial = chebyshev.Chebyshev([0.3, -1.0, 0.5, 0.7, -0.4])
    values, wanted = polynomial(tau(np.array(PAPER_14), 50)), polynomial(tau(48, 50))
    errors = [abs(chebyshev_weights(PAPER_14, 48, 50, 4, 10.0**-k) @ values - wanted) for k in range(1, 11)]
    assert errors[0] > 1e-3
    assert all(later < 0.2 * before for before, later in pairwise(errors))
    assert errors[-1] < 1e-8


def test_chebyshev_is_not_exact_beyond_its_degree():
    values = chebyshev.Chebyshev([0, 0, 0, 0, 0, 1])(tau(np.array(PAPER_14), 50))
    error = chebyshev_weights(PAPER_14, 49, 50, 4, 0.0) @ values - chebyshev.Chebyshev([0] * 5 + [1])(tau(49, 50))
    assert abs(error) > 0.1


def test_without_ridge_and_with_few_points_the_fit_has_the_smallest_norm():
    evaluated, values = [0, 3, 4], np.array([1.0, -2.0, 0.5])
    Phi = chebyshev.chebvander(2 * np.array(evaluated) / 10 - 1, 4)
    expected = chebyshev.chebval(2 * 7 / 10 - 1, np.linalg.pinv(Phi) @ values)
    assert chebyshev_weights(evaluated, 7, 10, 4, 0.0) @ values == pytest.approx(expected, rel=1e-9)


@SETTINGS
@given(cases(), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_taylor_is_exact_on_polynomials_up_to_its_order(case, order, seed):
    evaluated, target, total = case
    used = min(order, len(evaluated) - 1)  # the order is lowered where points are few
    coefficients = np.random.default_rng(seed).uniform(-1, 1, used + 1)
    values = np.polyval(coefficients, np.array(evaluated) / total)
    weights = taylor_weights(evaluated, target, order)
    wanted = np.polyval(coefficients, target / total)
    assert weights @ values == pytest.approx(wanted, abs=1e-11 * max(1.0, np.abs(weights).sum()))
    assert weights.sum() == pytest.approx(1, abs=1e-11 * np.abs(weights).sum())
    assert np.count_nonzero(weights[: len(evaluated) - used - 1]) == 0


def test_taylor_by_hand():
    # Lines through (3, h3) and (7, h7): slope (h7 − h3)/4, so at 9 it is h7 + (h7 − h3)/2.
    np.testing.assert_allclose(taylor_weights([0, 3, 7], 9, 1), [0, -0.5, 1.5])
    # Newton on 0, 3, 7 at 9: h7 + 2·[3,7] + 2·6·[0,3,7] with [3,7] = (h7−h3)/4, [0,3] = (h3−h0)/3,
    # [0,3,7] = ([3,7]−[0,3])/7: h0 12/21, h3 −1/2 − 3/7 − 4/7 = −3/2, h7 1 + 1/2 + 3/7.
    np.testing.assert_allclose(taylor_weights([0, 3, 7], 9, 2), [12 / 21, -1.5, 1 + 0.5 + 3 / 7])


@pytest.mark.parametrize("order", [1, 2, 7])
def test_taylor_lowers_its_order_where_points_are_few(order):
    np.testing.assert_array_equal(taylor_weights([4], 9, order), [1.0])
    np.testing.assert_allclose(taylor_weights([2, 4], 9, order), [-2.5, 3.5])


def test_reuse_takes_the_last_feature():
    np.testing.assert_array_equal(reuse_weights([0, 1, 5], 8), [0, 0, 1])
    np.testing.assert_array_equal(taylor_weights([0, 1, 5], 8, 0), [0, 0, 1])


def test_taylorseer_by_hand_on_uneven_steps():
    # step 0: D0 = h0
    # step 4: D0 = h4, D1 = (h4 − h0)/4; no D2, since step 0 has no D1
    # step 6: D0 = h6, D1 = (h6 − h4)/2, D2 = (D1 − (h4 − h0)/4)/2 = h6/4 − 3h4/8 + h0/8
    # step 9, k = 3: h6 + 3·D1 + 9/2·D2
    np.testing.assert_allclose(taylorseer_weights([0, 4], 6, 2), [-0.5, 1.5])
    np.testing.assert_allclose(taylorseer_weights([0, 4, 6], 9, 1), [0, -1.5, 2.5])
    np.testing.assert_allclose(taylorseer_weights([0, 4, 6], 9, 2), [9 / 16, -1.5 - 27 / 16, 1 + 1.5 + 9 / 8])
    # start = 5: step 4 makes no difference, so step 6 has D1 and no D2.
    np.testing.assert_allclose(taylorseer_weights([0, 4, 6], 9, 2, 5), [0, -1.5, 2.5])
    # start = 7: no step makes one, so step 6 is reused.
    np.testing.assert_allclose(taylorseer_weights([0, 4, 6], 9, 2, 7), [0, 0, 1])


def test_taylorseer_warmup_of_the_public_code():
    # first_enhance = 5: D1 first at step 4, D2 at the next evaluated step, 8.
    assert np.count_nonzero(taylorseer_weights([0, 1, 2, 3], 4, 2, 4)) == 1
    assert np.count_nonzero(taylorseer_weights([0, 1, 2, 3, 4], 6, 2, 4)) == 2
    assert np.count_nonzero(taylorseer_weights([0, 1, 2, 3, 4, 8], 10, 2, 4)) == 3


def taylorseer_sequence(steps, values, target, order, start):
    """The recursion on numbers, as its public code keeps it: a dictionary of differences a step."""
    kept = {}
    for n, (step, value) in enumerate(zip(steps, values, strict=True)):
        differences = {0: value}
        for i in range(order):
            if n == 0 or step < start or i not in kept:
                break
            differences[i + 1] = (differences[i] - kept[i]) / (step - steps[n - 1])
        kept = differences
    return sum(kept[i] * (target - steps[-1]) ** i / math.factorial(i) for i in kept)


@SETTINGS
@given(cases(), st.integers(0, 4), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_taylorseer_is_the_recursion(case, order, start, seed):
    evaluated, target, _ = case
    values = np.random.default_rng(seed).standard_normal(len(evaluated))
    weights = taylorseer_weights(evaluated, target, order, start)
    expected = taylorseer_sequence(evaluated, values, target, order, start)
    assert weights @ values == pytest.approx(expected, abs=1e-10 * max(1.0, np.abs(weights).sum()))


def test_taylorseer_of_order_1_is_the_line_and_of_order_2_is_not_newtons():
    np.testing.assert_allclose(taylorseer_weights([0, 3, 7], 9, 1), taylor_weights([0, 3, 7], 9, 1))
    assert not np.allclose(taylorseer_weights([0, 3, 7], 9, 2), taylor_weights([0, 3, 7], 9, 2))


@pytest.mark.parametrize("blend", [0.0, 0.25, 0.5, 1.0])
def test_blend(blend):
    for target, known in ((9, PAPER_14[:7]), (45, PAPER_14[:-1]), (3, [0])):
        expected = blend * chebyshev_weights(known, target, 50, 3, 0.2)
        expected = expected + (1 - blend) * taylor_weights(known, target, 1)
        np.testing.assert_allclose(blend_weights(known, target, 50, 3, 0.2, blend), expected, atol=1e-14)


def test_blend_of_one_is_the_papers_forecast():
    known = PAPER_14[:-1]
    np.testing.assert_array_equal(blend_weights(known, 45, 50, blend=1.0), chebyshev_weights(known, 45, 50))


FORECASTERS = [
    (chebyshev_weights, (9, 50)),
    (taylor_weights, (9, 2)),
    (taylorseer_weights, (9, 2)),
    (reuse_weights, (9,)),
    (blend_weights, (9, 50)),
]


@pytest.mark.parametrize(("function", "arguments"), FORECASTERS, ids=lambda x: getattr(x, "__name__", ""))
def test_weights_are_cached_and_read_only(function, arguments):
    first = function([0, 1, 4], *arguments)
    assert function((0, 1, 4), *arguments) is first
    assert function(np.array([0, 1, 4]), *arguments) is first
    assert function([0, 2, 4], *arguments) is not first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1.0


@pytest.mark.parametrize(("function", "arguments"), FORECASTERS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ([], "evaluated=[] is empty"),
        ([3, 1], "step 1 follows 3"),
        ([0, 2, 2], "step 2 follows 2: sort it and drop"),
    ],
)
def test_wrong_evaluated_steps(function, arguments, evaluated, message):
    with pytest.raises(InvalidOptionError) as caught:
        function(evaluated, *arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (chebyshev_weights, (9, 0), "total=0 is out of range"),
        (chebyshev_weights, (9, 50.5), "total=50.5 is not an integer"),
        (chebyshev_weights, (9, 50, -1), "degree=-1 is out of range"),
        (chebyshev_weights, (9, 50, 2.5), "degree=2.5 is not an integer"),
        (chebyshev_weights, (9, 50, 4, -0.1), "ridge=-0.1 is out of range"),
        (chebyshev_weights, (9, 50, 4, math.nan), "ridge=nan is out of range"),
        (chebyshev_weights, (9, 50, 4, "0.1"), "ridge='0.1' is not a number"),
        (blend_weights, (9, 50, 4, 0.1, 1.5), "blend=1.5 is out of range: give a finite number within 0 … 1"),
        (blend_weights, (9, 50, 4, 0.1, -0.5), "blend=-0.5 is out of range"),
        (blend_weights, (9, 50, -4), "degree=-4 is out of range"),
        (taylor_weights, (9, -1), "order=-1 is out of range"),
        (taylor_weights, (9, 1.5), "order=1.5 is not an integer"),
        (taylorseer_weights, (9, -2), "order=-2 is out of range"),
    ],
)
def test_wrong_values(function, arguments, message):
    with pytest.raises(InvalidOptionError) as caught:
        function([0, 1, 4], *arguments)
    assert message in str(caught.value)


def test_a_cached_result_hides_no_wrong_value():
    chebyshev_weights([0, 1, 4], 9, 50, 1)
    with pytest.raises(InvalidOptionError, match="degree=True is not an integer"):
        chebyshev_weights([0, 1, 4], 9, 50, True)
