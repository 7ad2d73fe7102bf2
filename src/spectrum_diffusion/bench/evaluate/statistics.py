"""Means and differences with 95 % intervals, by a bootstrap over prompts.

Prompts are resampled, each with all of its seeds: images of one prompt are similar, and treating them as independent
would make intervals too narrow. Differences of two methods are paired by prompt, so that prompts that are hard for both
do not widen the interval. Percentile intervals are too narrow for few prompts; they are widened as in Hesterberg, What
Teachers Should Know About the Bootstrap, 2015 ("expanded percentile").
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = Mapping[tuple[str, int], float | None]
"""Values by prompt and seed."""

RESAMPLES = 10_000
LEVEL = 0.95
ENOUGH = 6
"""Fewest prompts for a verdict: five differences have the same sign by chance in 1 of 16 cases."""
CHUNK = 2_000_000
"""Number of indices drawn at once, which bounds the memory."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        mean: None without values.
        low, high: 95 % interval; None for fewer than two prompts.
        prompts: how many prompts have a value.
    """

    mean: float | None
    low: float | None
    high: float | None
    prompts: int


def by_prompt(values: Values) -> dict[str, float]:
    """Mean over the seeds of each prompt, ignoring None."""
    grouped: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        if value is not None:
            grouped.setdefault(prompt, []).append(value)
    return {prompt: statistics.fmean(of_prompt) for prompt, of_prompt in grouped.items()}


def difference(values: Values, baseline: Values) -> Estimate:
    """The paired difference to a baseline over their common cases."""
    pairs = {
        case: value - other
        for case, value in values.items()
        if value is not None and (other := baseline.get(case)) is not None
    }
    return estimate(list(by_prompt(pairs).values()))


def estimate(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of one value per prompt, with its interval. The same values always give the same interval."""
    sample = np.asarray(values, dtype=np.float64)  # (n,)
    if not len(sample):
        return Estimate(None, None, None, 0)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Estimate(mean, None, None, 1)
    means = resampled_means(sample, resamples, seed)  # (resamples,)
    tail = expanded_tail(len(sample))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), len(sample))


def resampled_means(sample: np.ndarray[Any, Any], resamples: int, seed: int) -> np.ndarray[Any, Any]:
    """Means of samples drawn with replacement, (resamples,)."""
    generator = np.random.default_rng(seed)
    count = len(sample)
    rows = max(1, CHUNK // count)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([sample[generator.integers(count, size=(size, count))].mean(axis=1) for size in sizes])


def expanded_tail(count: int) -> float:
    """The quantile that bounds the interval of ``count`` values: 0.025 for very many, less for few."""
    normal = statistics.NormalDist()
    quantile = _student(normal.inv_cdf((1 + LEVEL) / 2), count - 1)
    return normal.cdf(-math.sqrt(count / (count - 1)) * quantile)


def _student(z: float, freedom: int) -> float:
    """Student's quantile from the normal one: a Cornish-Fisher series, which fails below 3 degrees of freedom."""
    p = statistics.NormalDist().cdf(z)
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def verdict(gap: Estimate, higher_is_better: bool) -> str:
    """Whether a difference is more than chance: "better", "worse", "no difference seen" or "too few prompts"."""
    if gap.low is None or gap.high is None or gap.prompts < ENOUGH:
        return "too few prompts"
    if gap.low <= 0 <= gap.high:
        return "no difference seen"
    return "better" if (gap.low > 0) == higher_is_better else "worse"


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def quartiles(values: Sequence[float]) -> list[float] | None:
    """The middle half of the values."""
    if len(values) < 2:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]
