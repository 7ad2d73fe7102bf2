"""The paper's three error bounds as numbers: the first attained, the second and third never violated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.polynomial import chebyshev

from spectrum_diffusion.core.forecast import chebyshev_weights, tau, taylor_weights
from spectrum_diffusion.core.schedule import adaptive, uniform

GRID = np.linspace(-1, 1, 801)


def worst_case_derivative(L: float, m: int, i: int, t: float) -> float:
    """i-th derivative of f(t) = L·t^(m+1)/(m+1)!, whose (m+1)-th is L everywhere."""
    return L * t ** (m + 1 - i) / math.factorial(m + 1 - i)


def local_taylor(derivatives: Callable[[int], float], order: int, h: float) -> float:
    return sum(derivatives(i) * h**i / math.factorial(i) for i in range(order + 1))


@pytest.mark.parametrize("m", range(6))
def test_first_bound_is_attained_and_grows_with_the_horizon(m):
    L, t = 1.7, 0.4
    errors = []
    for h in (0.1, 0.2, 0.4, 0.8, 1.6):
        forecast = local_taylor(lambda i: worst_case_derivative(L, m, i, t), m, h)
        errors.append(abs(worst_case_derivative(L, m, 0, t + h) - forecast))
        assert errors[-1] == pytest.approx(L * h ** (m + 1) / math.factorial(m + 1), rel=1e-9)
    growth = [b / a for a, b in pairwise(errors)]
    assert growth == pytest.approx([2 ** (m + 1)] * 4, rel=1e-8)


@pytest.mark.parametrize("m", range(6))
def test_first_bound_holds_for_sines(m):
    rng = np.random.default_rng(m)
    for _ in range(200):
        L, phase, t, h = rng.uniform(0.1, 5), rng.uniform(0, 7), rng.uniform(-1, 1), rng.uniform(0, 2)
        forecast = local_taylor(lambda i, L=L, t=t, p=phase: L * math.sin(t + p + i * math.pi / 2), m, h)
        error = abs(L * math.sin(t + phase + h) - forecast)
        assert error <= L * h ** (m + 1) / math.factorial(m + 1) * (1 + 1e-12) + 1e-13


@pytest.mark.parametrize("order", range(4))
def test_taylor_weights_err_by_at_least_the_first_bound_on_its_worst_case(order):
    # Divided differences know f at the evaluated steps only: on t^(m+1)/(m+1)! they err by ∏(t − t_k)/(m+1)!,
    # which is at least h^(m+1)/(m+1)!, h being the distance to the last of them.
    evaluated = adaptive(50)[:9]
    values = np.array(evaluated, float) ** (order + 1) / math.factorial(order + 1)
    for target in range(evaluated[-1] + 1, 50):
        wanted = target ** (order + 1) / math.factorial(order + 1)
        error = wanted - taylor_weights(evaluated, target, order) @ values
        product = math.prod(target - step for step in evaluated[-order - 1 :]) / math.factorial(order + 1)
        assert error == pytest.approx(product, rel=1e-6)
        assert error >= (target - evaluated[-1]) ** (order + 1) / math.factorial(order + 1) * (1 - 1e-6)


@dataclass
class Analytic:
    """A function with |f| ≤ bound on the Bernstein ellipse ρ, and its first Chebyshev coefficients."""

    name: str
    f: Callable[[np.ndarray], np.ndarray]
    rho: float
    bound: float
    coefficients: np.ndarray

    def truncation_bound(self, M: int) -> float:
        return 2 * self.bound * self.rho**-M / (self.rho - 1)

    def coefficient_bound(self) -> float:
        return 2 * self.bound / math.sqrt(1 - self.rho**-2)


def random_functions(count: int, seed: int) -> Iterator[Analytic]:
    """Chebyshev series, poles outside the ellipse, and exponentials, each with a bound in closed form."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        rho = float(rng.uniform(1.15, 3.0))
        tip = (rho + 1 / rho) / 2  # the ellipse's rightmost point
        if n % 3 == 0:
            # |T_k| ≤ (ρ^k + ρ^−k)/2 on the ellipse.
            k = np.arange(30)
            c = rng.standard_normal(30) * rho ** -(k * rng.uniform(0.9, 1.3))
            bound = float(np.sum(np.abs(c) * (rho**k + rho**-k) / 2))
            yield Analytic("series", lambda t, c=c: chebyshev.chebval(t, c), rho, bound, c)
        elif n % 3 == 1:
            # 1/(a − t) has the coefficients 2qᵏ/√(a²−1) (half at k = 0) with q = a − √(a²−1).
            a = tip * float(1 + rng.uniform(0.005, 0.3))
            root = math.sqrt(a * a - 1)
            c = 2 / root * (a - root) ** np.arange(30)
            c[0] /= 2
            yield Analytic("pole", lambda t, a=a: 1 / (a - t), rho, 1 / (a - tip), c)
        else:
            s = float(rng.uniform(-6, 6))
            c = chebyshev.chebinterpolate(lambda t, s=s: np.exp(s * t), 40)
            yield Analytic("exp", lambda t, s=s: np.exp(s * t), rho, math.exp(abs(s) * tip), c)


def test_coefficients_of_the_random_functions_are_right():
    for case in random_functions(60, seed=0):
        exact = chebyshev.chebinterpolate(case.f, 250)[:10]
        np.testing.assert_allclose(case.coefficients[:10], exact, rtol=1e-8, atol=1e-10 * case.bound)


def test_second_bound_is_never_violated():
    tightest = 0.0
    for case in random_functions(600, seed=1):
        values = case.f(GRID)
        for M in range(2, 9):
            truncated = chebyshev.chebval(GRID, case.coefficients[: M + 1])
            error = np.abs(values - truncated).max()
            limit = case.truncation_bound(M)
            assert error <= limit + 1e-12 * case.bound, (case.name, case.rho, M)
            tightest = max(tightest, error / limit)
    assert tightest > 0.1  # the functions come near enough to the bound for a wrong one to show


SCHEDULES = [adaptive(50), adaptive(50, slope=3), uniform(50, 6, 3)]


def ridge_bound(evaluated: list[int], total: int, M: int, ridge: float, epsilon: float, norm: float) -> float:
    """ε_M + √(M+1)·(√K·ε_M·max σ/(σ²+λ) + λ‖c*‖/(σ_min²+λ)); no target in it."""
    Phi = chebyshev.chebvander(2 * np.array(evaluated) / total - 1, M)
    sigma = np.zeros(M + 1)
    singular = np.linalg.svd(Phi, compute_uv=False)
    sigma[: len(singular)] = singular
    fit = math.sqrt(len(evaluated)) * epsilon * (sigma / (sigma**2 + ridge)).max()
    return epsilon + math.sqrt(M + 1) * (fit + ridge * norm / (sigma.min() ** 2 + ridge))


def forecasts_and_bounds(seed: int) -> Iterator[tuple[Analytic, float, float, float]]:
    """The largest error over all later targets, the paper's bound, and the one with the true ε_M and ‖c*‖."""
    rng = np.random.default_rng(seed)
    for case in random_functions(240, seed):
        steps = SCHEDULES[rng.integers(len(SCHEDULES))]
        evaluated = steps[: rng.integers(2, len(steps) + 1)]
        M, ridge = int(rng.integers(2, 7)), 10.0 ** rng.uniform(-4, 1)
        values = case.f(tau(np.array(evaluated), 50))
        worst = max(
            abs(chebyshev_weights(evaluated, target, 50, M, ridge) @ values - float(case.f(tau(target, 50))))
            for target in range(evaluated[-1] + 1, 50, 3)
        ) if evaluated[-1] < 49 else 0.0  # fmt: skip
        c = case.coefficients[: M + 1]
        true_epsilon = float(np.abs(case.f(GRID) - chebyshev.chebval(GRID, c)).max()) * 1.001 + 1e-12 * case.bound
        paper = ridge_bound(evaluated, 50, M, ridge, case.truncation_bound(M), case.coefficient_bound())
        yield case, worst, paper, ridge_bound(evaluated, 50, M, ridge, true_epsilon, float(np.linalg.norm(c)))


def test_third_bound_is_never_violated_at_any_horizon():
    tightest = 0.0
    for case, worst, paper, sharp in forecasts_and_bounds(seed=2):
        assert worst <= paper, (case.name, case.rho)
        assert worst <= sharp, (case.name, case.rho)
        tightest = max(tightest, worst / sharp)
    assert tightest > 0.2  # a forecast far off would be seen


def test_coefficients_are_within_their_bound():
    for case in random_functions(300, seed=3):
        assert np.linalg.norm(case.coefficients) <= case.coefficient_bound()


def test_local_forecasts_break_the_bound_of_the_spectral_one():
    # The same evaluations of T_5: the line's error at the far end is larger than that of the ridge fit.
    evaluated, target = adaptive(50, slope=3)[:-1], 43
    values = chebyshev.chebval(tau(np.array(evaluated), 50), [0, 0, 0, 1])
    wanted = chebyshev.chebval(tau(target, 50), [0, 0, 0, 1])
    spectral = abs(chebyshev_weights(evaluated, target, 50, 4, 1e-3) @ values - wanted)
    assert spectral < 0.2 * abs(taylor_weights(evaluated, target, 1) @ values - wanted)
