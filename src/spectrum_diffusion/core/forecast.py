"""Forecasters as weights: pure maths on step numbers.

Every linear forecaster is a weighted sum of the K evaluated features, ``ĥ(τ*) = Σ w_k h_k``. Its weights depend only on
the evaluated steps and the target step. They are K float64 numbers, computed on the CPU in microseconds and cached by
their arguments; all F channels of a feature share them. Time is ``τ(i) = 2i/T − 1`` (Spectrum, § 3.2).

Steps are integers. On other time axes (sigma, log-SNR) they are times in units of steps. The returned arrays are
read-only, because the cache shares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidOptionError
from .schedule import check_evaluated_points, check_integer, check_number

Weights = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Weights])


def _cached(function: F) -> F:
    """Cache a weight function by its arguments. Steps may be any iterable of numbers; the array is read-only."""

    @lru_cache(maxsize=4096, typed=True)
    def compute(evaluated: tuple[float, ...], *args: object, **kwargs: object) -> Weights:
        weights = function(check_evaluated_points(evaluated), *args, **kwargs)
        weights.setflags(write=False)
        return weights

    @wraps(function)
    def call(evaluated: Iterable[float], *args: object, **kwargs: object) -> Weights:
        return compute(tuple(evaluated), *args, **kwargs)

    return call  # type: ignore[return-value]


def check_weights(weights: object, *, count: int, method: str) -> Weights:
    """The weights that a method returned for ``count`` evaluated steps, float64, (K,).

    Raises:
        InvalidOptionError: they are not ``count`` finite numbers.
    """
    try:
        array = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, not numbers, or on an accelerator
        raise InvalidOptionError(
            f"weights of method {method!r} returned {weights!r}, which is not a list of numbers ({error}): return a "
            f"NumPy array or a list of {count} floats, one for each evaluated step"
        ) from error
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InvalidOptionError(
            f"weights of method {method!r} returned {array.tolist()} of shape {array.shape} for {count} evaluated "
            f"steps: return {count} finite numbers, one for each step"
        )
    return array


def tau(step: float | NDArray[np.number], total: int) -> NDArray[np.float64]:
    """Normalised time ``2i/T − 1`` of a step i or of several."""
    return 2.0 * np.asarray(step, dtype=np.float64) / total - 1.0


def chebyshev_basis(times: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Rows ``φ(τ) = [T_0(τ) … T_M(τ)]`` by the recurrence ``T_m = 2τT_(m−1) − T_(m−2)``.

    Args:
        times: normalised times, shape (K,).
        degree: M ≥ 0.

    Returns:
        Φ of shape (K, M+1).
    """
    columns = [np.ones_like(times), times]
    for _ in range(degree - 1):
        columns.append(2.0 * times * columns[-1] - columns[-2])
    return np.stack(columns[: degree + 1], axis=-1)  # (K, M+1)


@_cached
def chebyshev_weights(
    evaluated: Iterable[float], target: float, total: int, degree: int = 4, ridge: float = 0.1
) -> Weights:
    """Weights of the Chebyshev ridge forecast, ``w = φ(τ*)(ΦᵀΦ + λI)⁻¹Φᵀ`` (Spectrum, § 3.2).

    They equal fitting ``C = (ΦᵀΦ + λI)⁻¹ΦᵀH`` to the features H and evaluating ``φ(τ*)C``. λ acts on all M+1
    coefficients including T_0, so the weights need not sum to one.

    Args:
        evaluated: the K evaluated steps, increasing.
        target: the step to forecast.
        total: number of steps T of the run, which scales time.
        degree: highest Chebyshev degree M ≥ 0.
        ridge: λ ≥ 0; 0 gives the least-squares fit of minimum norm.

    Returns:
        float64, shape (K,).

    Raises:
        InvalidOptionError: no steps, repeated steps, or a value outside its range.
    """
    check_integer("total", total, least=1)
    check_integer("degree", degree, least=0)
    check_number("ridge", ridge, least=0.0)
    Phi = chebyshev_basis(tau(np.asarray(evaluated), total), degree)  # (K, M+1)
    phi = chebyshev_basis(tau(np.asarray([target]), total), degree)[0]  # (M+1,)
    # Singular values apply the ridge without squaring the condition number of Φ, and cover λ = 0 with K < M+1.
    U, sigma, Vt = np.linalg.svd(Phi, full_matrices=False)  # (K, r), (r,), (r, M+1)
    kept = sigma > sigma[0] * np.finfo(np.float64).eps * max(Phi.shape)
    gain = np.where(kept, sigma, 0.0) / np.where(kept, sigma**2 + ridge, 1.0)  # (r,)
    return U @ (gain * (Vt @ phi))  # (K,)


@_cached
def taylor_weights(evaluated: Iterable[float], target: float, order: int = 1) -> Weights:
    """Weights of the order-``order`` extrapolation from the last steps, by exact divided differences.

    Newton's form on uneven steps: the polynomial through the last ``order + 1`` evaluated features, evaluated at
    ``target``. Order 0 reuses the last feature, order 1 is the line through the last two. With fewer than
    ``order + 1`` features the order is K − 1.

    Args:
        evaluated: the K evaluated steps, increasing.
        target: the step to forecast.
        order: degree of the polynomial, ≥ 0.

    Returns:
        float64, shape (K,); zero except for the last ``order + 1``.

    Raises:
        InvalidOptionError: no steps, repeated steps, or a negative order.
    """
    steps = np.asarray(evaluated, dtype=np.float64)
    count = min(check_integer("order", order, least=0), len(steps) - 1) + 1
    used = steps[-count:]
    weights = np.zeros(len(steps))
    for k in range(count):
        others = np.delete(used, k)
        weights[len(steps) - count + k] = np.prod((target - others) / (used[k] - others))
    return weights  # (K,)


@_cached
def taylorseer_weights(evaluated: Iterable[float], target: float, order: int = 1, start: float = 0) -> Weights:
    """Weights of TaylorSeer's forecast with its recursive differences (Liu et al., 2025, eq. 5-6; public code).

    At an evaluated step s with predecessor s⁻: ``D_0 = h``, ``D_(i+1) = (D_i − D_i⁻)/(s − s⁻)`` for ``i < order``
    where ``D_i⁻`` exists and ``s ≥ start``; the forecast is ``Σ D_i kⁱ/i!`` with ``k = target − s``. On uneven steps
    the higher differences are not the divided differences of :func:`taylor_weights`.

    Args:
        evaluated: the K evaluated steps, increasing.
        target: the step to forecast.
        order: highest difference used, ≥ 0.
        start: first step at which differences are computed (first_enhance − 1 in the public code).

    Returns:
        float64, shape (K,).
    """
    horizon = float(target - list(evaluated)[-1])
    powers = [horizon**i for i in range(_order(order, evaluated) + 1)]
    return _summed_differences(list(evaluated), powers, start)


@_cached
def hermite_weights(
    evaluated: Iterable[float], target: float, order: int = 2, start: float = 0, contraction: float = 0.5
) -> Weights:
    """Weights of HiCache: :func:`taylorseer_weights` with ``kⁱ`` replaced by ``σⁱ H_i(σk)`` (Feng et al., 2025).

    ``H_i`` are the physicists' Hermite polynomials, ``H_0 = 1``, ``H_1 = 2x``, ``H_(i+1) = 2x H_i − 2i H_(i−1)``.
    ``contraction`` is σ, 0 … 1. The other arguments are those of :func:`taylorseer_weights`.
    """
    x = check_number("contraction", contraction, least=0.0, most=1.0) * float(target - list(evaluated)[-1])
    hermite = [1.0, 2.0 * x]
    order = _order(order, evaluated)
    for i in range(1, order):
        hermite.append(2.0 * x * hermite[i] - 2.0 * i * hermite[i - 1])
    return _summed_differences(list(evaluated), [contraction**i * h for i, h in enumerate(hermite[: order + 1])], start)


def _order(order: int, evaluated: Iterable[float]) -> int:
    """The highest difference that the evaluated steps have, up to ``order``; 1/i! of more than 170 fits no float64."""
    return min(check_integer("order", order, least=0), len(list(evaluated)) - 1, 170)


def _summed_differences(steps: list[float], factors: list[float], start: float) -> Weights:
    """``Σ D_i f_i / i!`` of TaylorSeer's recursive differences at the last step, as weights of the features, (K,)."""
    unit = np.eye(len(steps))
    differences: list[Weights] = []
    for k, step in enumerate(steps):
        previous, differences = differences, [unit[k]]
        if k and step >= start:
            gap = step - steps[k - 1]
            for lower in previous[: len(factors) - 1]:
                differences.append((differences[-1] - lower) / gap)
    return np.sum([d * factors[i] / math.factorial(i) for i, d in enumerate(differences)], axis=0)  # (K,)


@_cached
def interpolation_weights(evaluated: Iterable[float], target: float) -> Weights:
    """Weights of the polynomial through all evaluated features (Lagrange's form), at a step between them.

    Returns:
        float64, shape (K,); they sum to one.
    """
    steps = np.asarray(evaluated, dtype=np.float64)
    return taylor_weights(steps, target, len(steps) - 1)


def reuse_weights(evaluated: Iterable[float], target: float) -> Weights:
    """Weights that repeat the last evaluated feature (FORA; Taylor of order 0), shape (K,)."""
    return taylor_weights(evaluated, target, 0)


@_cached
def blend_weights(
    evaluated: Iterable[float], target: float, total: int, degree: int = 4, ridge: float = 0.1, blend: float = 0.5
) -> Weights:
    """``blend``·Chebyshev + (1 − ``blend``)·line through the last two features (as Spectrum's public code suggests).

    ``blend`` is within 0 … 1: 1 is the paper's forecast, 0 the line. The other arguments are those of
    :func:`chebyshev_weights`.
    """
    check_number("blend", blend, least=0.0, most=1.0)
    spectral = chebyshev_weights(evaluated, target, total, degree, ridge)
    return blend * spectral + (1.0 - blend) * taylor_weights(evaluated, target, 1)  # (K,)
