"""Which of the T steps of a sampler are evaluated. Pure integers: nothing here knows tensors.

Steps are 0-based. A schedule is a sorted list of distinct steps that starts with 0; the other steps are forecast.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, TypeGuard

from ..errors import InvalidOptionError

MAX_TOTAL = 1000
"""Longest run for which :func:`for_speedup` searches; samplers of more steps are unknown."""

LARGEST_INTEGER = 2**63 - 1
"""Integers above this fit neither a tensor nor a float."""

EVEN = 0.3
"""Share of even spacing in :func:`nodes`; the rest is that of Chebyshev nodes."""
BY_STEPS = 0.5
"""What all steps together count in :func:`pace`; the rest to 1 is what the whole fall of the noise's share counts."""
BY_RATIO = 0.2
"""What a fall of noise over signal by a factor of e counts beside them."""
FINEST = 1.0
"""Noise over signal at which the finest structure of latents is decided."""

ROUNDING = 1e-12
"""Relative room for the rounding of T/n in floats."""


@dataclass(frozen=True)
class Noise:
    """How noisy the latents of a sampling are.

    Attributes:
        ratios: noise over signal at each step, (T,), not rising.
        size: how many numbers n a sample has.
    """

    ratios: tuple[float, ...]
    size: int = 4 * 64 * 64


def adaptive(total: int, interval: int = 2, warmup: int = 5, slope: float = 0.75) -> list[int]:
    """Steps evaluated by Spectrum's adaptive schedule (Spectrum, § 3.3; Table 6).

    Steps ``0 … warmup-1`` are evaluated; then ``s_j = s_(j-1) + floor(interval + j·slope)`` for ``j = 0, 1, …``
    with ``s_(-1) = warmup - 1``, while ``s_j < total``. ``slope=0`` is the uniform schedule.

    Args:
        total: number of steps T of the sampler, ≥ 1.
        interval: first distance N between evaluated steps, ≥ 1.
        warmup: number W of steps evaluated at the start, ≥ 1; with ``total ≤ warmup`` every step is evaluated.
        slope: growth α of the distance at each evaluated step, ≥ 0.

    Returns:
        The evaluated steps, sorted, unique, within ``0 … total-1``; the first is 0.

    Raises:
        InvalidOptionError: a value outside its range.

    >>> adaptive(50)
    [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    """
    total = check_integer("total", total, least=1)
    check_spacing(interval, warmup, slope)
    steps = list(range(min(warmup, total)))
    step, j = warmup - 1, 0
    while (step := step + math.floor(interval + j * slope)) < total:
        steps.append(step)
        j += 1
    return steps


def uniform(total: int, interval: int = 2, warmup: int = 5) -> list[int]:
    """The adaptive schedule with slope 0: ``warmup`` steps, then every ``interval``-th (FORA, TaylorSeer).

    >>> uniform(50, interval=6, warmup=1)
    [0, 6, 12, 18, 24, 30, 36, 42, 48]
    """
    return adaptive(total, interval, warmup, slope=0.0)


def nodes(total: int, count: int, warmup: int = 1, noise: Noise | None = None) -> list[int]:
    """``count`` evaluated steps, closer together at both ends, with the first and the last step among them.

    Chebyshev-Lobatto nodes, at which a polynomial is best interpolated, mixed with even ones, along the :func:`pace` of
    the sampling, rounded to steps and made distinct. Where more than a third of the run would lie between two, and so
    many nodes can avoid it, they are moved.

    Args:
        total: number of steps T of the sampler, ≥ 1.
        count: number of evaluations K, 1 … T.
        warmup: number W of steps that are evaluated at the start, 1 … K; the nodes span the others.
        noise: of the latents at each step; None assumes flow matching without a shift.

    Raises:
        InvalidOptionError: a value outside its range.

    >>> nodes(50, 14)
    [0, 1, 2, 3, 4, 6, 10, 15, 20, 25, 34, 41, 46, 49]
    >>> nodes(50, 10, warmup=3)
    [0, 1, 2, 3, 7, 13, 21, 32, 43, 49]
    """
    total = check_integer("total", total, least=1)
    count = check_integer("count", count, least=1, most=total)
    warmup = check_integer("warmup", warmup, least=1, most=count)
    span = pace(noise or unshifted(total))[warmup - 1 :]
    spread = [span[0] + (span[-1] - span[0]) * share for share in chebyshev_lobatto(count - warmup + 1, EVEN)]
    steps = [
        *range(warmup - 1),
        *(warmup - 1 + step for step in distinct([_place(span, x) for x in spread], len(span))),
    ]
    return steps if count < fewest_nodes(total, warmup) else _within_reach(steps, farthest(total))


def pace(noise: Noise) -> list[float]:
    """How far the sampling has come at each step, rising from 0, (T,): by steps, and by what happens to the noise.

    The noise's share σ of the latents counts as much as the steps do: solvers integrate over it, and a step that
    removes little noise changes little. An image is decided from coarse to fine: in latents of n numbers, noise hides
    what all of them share down to a ratio to the signal of about √n, and what is in one of them down to about 1.
    Between these, the logarithm of the ratio counts too, so that larger latents get more steps where an image is
    composed. On FLUX.1 at 1024² pixels, 13 of 50 nodes are at most 2 steps from those that DPCache's search finds
    (2602.22654).
    """
    coarsest = max(math.sqrt(noise.size), 2 * FINEST)
    logs = [math.log(min(max(ratio, FINEST), coarsest)) for ratio in noise.ratios]
    shares = [1 - 1 / (1 + ratio) for ratio in noise.ratios]  # the first ratio may be infinite
    steps, removed = max(len(logs) - 1, 1), (shares[0] - shares[-1]) or 1.0
    return [
        BY_STEPS * i / steps + (1 - BY_STEPS) * (shares[0] - share) / removed + BY_RATIO * (logs[0] - log)
        for i, (share, log) in enumerate(zip(shares, logs, strict=True))
    ]


def unshifted(total: int) -> Noise:
    """The noise of flow matching without a shift."""
    return Noise(tuple((total - i) / max(i, 1e-3) for i in range(total)))


def chebyshev_lobatto(count: int, even: float = 0.0) -> list[float]:
    """Chebyshev-Lobatto nodes within 0 … 1, mixed with a share of even ones, (K,)."""
    shares = [j / max(count - 1, 1) for j in range(count)]
    return [even * share + (1 - even) * (1 - math.cos(math.pi * share)) / 2 for share in shares]


def _place(rising: Sequence[float], value: float) -> float:
    """Where a value lies along rising ones, by linear interpolation, in places."""
    after = min(bisect_left(rising, value), len(rising) - 1)
    if not after:
        return 0.0
    below, above = rising[after - 1], rising[after]
    return after - (above - value) / (above - below) if above > below else float(after)


def distinct(places: Sequence[float], total: int) -> list[int]:
    """The steps nearest to rising places 0 … T−1, each its own: after those before, with room for the rest."""
    steps: list[int] = []
    for j, place in enumerate(places):
        least = steps[-1] + 1 if steps else 0
        steps.append(min(max(round(place), least), total - len(places) + j))
    return steps


def nodes_for_speedup(
    total: int,
    speedup: float | None,
    warmup: int = 1,
    *,
    default: float = 3.5,
    least: int = 1,
    noise: Noise | None = None,
) -> list[int]:
    """The :func:`nodes` of ``⌊total/speedup⌋`` evaluations.

    Args:
        total: number of steps T, ≥ 1.
        speedup: wanted ratio of steps to evaluations, ≥ 1; None is the ``default``, or less where that is too much.
        warmup: number of steps that are evaluated at the start, ≥ 1.
        default: the ratio where none is wanted.
        least: the fewest evaluations where none is wanted; a shorter run is evaluated whole.
        noise: of the latents at each step, see :func:`nodes`.

    Raises:
        InvalidOptionError: ``speedup`` would forecast more than a third of the run from one evaluated step, or leave
            no evaluations beside the warm-up.
    """
    warmup = min(warmup, total)
    fewest = fewest_nodes(total, warmup)
    if speedup is None:
        return nodes(total, max(at_most(total, default), fewest, min(least, total)), warmup, noise)
    if (count := at_most(total, speedup)) < fewest:
        beside = f", with a warmup of {warmup}" if warmup > 1 else ""
        raise InvalidOptionError(
            f"speedup={speedup:g} leaves {count} of {total} steps to evaluate{beside}, but no more than a third of the "
            f"run may be forecast from one evaluated step: pass a speedup within 1 … {_floor(total / fewest):g}"
        )
    return nodes(total, count, warmup, noise)


def fewest_nodes(total: int, warmup: int = 1) -> int:
    """The fewest :func:`nodes` between which never more than a third of the run is forecast."""
    return warmup + math.ceil((total - warmup) / farthest(total))


def farthest(total: int) -> int:
    """The longest distance between evaluated steps with no more than a third of the run between them."""
    return total // 3 + 1


def _within_reach(steps: Sequence[int], distance: int) -> list[int]:
    """The steps, moved where two neighbours are farther apart than ``distance``; the first and the last stay."""
    forward = list(accumulate(steps, lambda before, step: min(step, before + distance)))
    forward[-1] = steps[-1]
    return list(accumulate(reversed(forward), lambda after, step: max(step, after - distance)))[::-1]


def explicit(total: int, evaluated: Iterable[int]) -> list[int]:
    """Check a schedule written out by the user for a run of ``total`` steps.

    Raises:
        InvalidOptionError: empty, not integers, repeated, unsorted, not starting with 0, or a step ≥ ``total``.
    """
    steps = check_evaluated(evaluated)
    if steps[-1] >= total:
        raise InvalidOptionError(
            f"evaluated={list(steps)} names step {steps[-1]}, but the run has {total} steps (0 … {total - 1}): "
            f"drop the steps from {total} on, or run more steps"
        )
    return list(steps)


def for_speedup(total: int, speedup: float, warmup: int | None = None) -> list[int]:
    """The schedule with the smallest reachable ``total/NFE ≥ speedup``.

    Searched over the intervals and slopes of :func:`adaptive` whose first gap is at most a third of the run, and that
    forecast at most a third of it after the last evaluated step: what is extrapolated further ruins the image. Among
    the settings that reach this NFE the interval nearest to 2 is taken (the paper's), and the middle of its range of
    slopes.

    Args:
        total: number of steps T, 1 … 1000.
        speedup: wanted ratio of steps to evaluations, ≥ 1.
        warmup: number W of steps evaluated at the start; by default ``min(T, max(2, T // 10))``.

    Raises:
        InvalidOptionError: no such schedule reaches ``speedup``, or it is below 1 or NaN.

    >>> for_speedup(50, 5)
    [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    """
    total = check_integer("total", total, least=1, most=MAX_TOTAL)
    warmup = speedup_warmup(total) if warmup is None else min(total, check_integer("warmup", warmup, least=1))
    value = check_number("speedup", speedup, finite=False)
    steps = _with_at_most(total, warmup, at_most(total, value)) if value >= 1.0 else ()
    if not steps:
        highest = total / next(n for n in range(warmup, total + 1) if _with_at_most(total, warmup, n))
        raise InvalidOptionError(
            f"speedup={speedup!r} is out of reach of {total} steps: give a number within 1 … {_floor(highest):g}. "
            f"The first {warmup} steps and one of the last third are evaluated: a smaller warmup reaches more"
        )
    return list(steps)


def at_most(total: int, speedup: float) -> int:
    """Most evaluations that reach ``speedup``: total / speedup rounded down, but for the rounding of floats."""
    return math.floor(total / speedup * (1 + ROUNDING))


def _floor(value: float) -> float:
    """To four decimals, downwards, so that the end of a range that a message names is itself within the range."""
    return math.floor(value * 1e4) / 1e4


def speedup_warmup(total: int) -> int:
    """Warm-up W = min(T, max(2, T // 10)) that :func:`for_speedup` uses by default."""
    return min(total, max(2, total // 10))


@lru_cache(maxsize=1024)
def _with_at_most(total: int, warmup: int, nfe: int) -> tuple[int, ...]:
    """The schedule with the most evaluations ≤ ``nfe``; empty if there is none."""
    # The NFE that an interval reaches with a falling slope are at most those of slope 0, so the largest one
    # allowed is found interval by interval; 2 comes first since ties go to the paper's interval.
    best: tuple[int, ...] = ()
    if nfe < min(total, warmup + 1):
        return best
    for interval in sorted(range(1, total // 3 + 2), key=lambda n: (abs(n - 2), n)):
        if len(best) == nfe:
            break
        steps = _slowest_slope(total, warmup, interval, nfe)
        if len(best) < len(steps) <= nfe and total - 1 - steps[-1] <= total / 3:
            best = steps
    return best


def _slowest_slope(total: int, warmup: int, interval: int, nfe: int) -> tuple[int, ...]:
    """The schedule of ``interval`` with the largest number of evaluations ≤ ``nfe``, at mid-range of its slopes."""

    def count(slope: float) -> int:
        return len(adaptive(total, interval, warmup, slope))

    low = _smallest_slope(count, nfe, total)
    reached = count(low)
    high = _smallest_slope(count, reached - 1, total) if reached > warmup + 1 else low
    middle = adaptive(total, interval, warmup, (low + high) / 2)
    return tuple(middle if len(middle) == reached else adaptive(total, interval, warmup, low))


def _smallest_slope(count: Callable[[float], int], nfe: int, total: int) -> float:
    # count falls as the slope grows, in steps; bisection finds the edge to well below 1/T², the smallest
    # distance between two edges (they lie at fractions k/j with j < T).
    if count(0.0) <= nfe:
        return 0.0
    low, high = 0.0, float(total)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if count(middle) <= nfe else (middle, high)
    return high


def check_spacing(interval: int, warmup: int, slope: float) -> None:
    """Raise :class:`InvalidOptionError` unless interval ≥ 1 and warmup ≥ 1 are integers and slope ≥ 0 is finite."""
    check_integer("interval", interval, least=1)
    check_integer("warmup", warmup, least=1)
    check_number("slope", slope, least=0.0)


def check_evaluated(evaluated: Iterable[int]) -> tuple[int, ...]:
    """The steps as a tuple, checked apart from the length of the run: sorted, unique, starting with 0."""
    if not is_list(evaluated):
        raise InvalidOptionError(
            f"evaluated must be a list of step indices, got {evaluated!r}: pass integers such as [0, 1, 2, 5]"
        )
    steps = tuple(check_integer("evaluated step", step, least=0) for step in evaluated)
    if not steps or steps[0] != 0:
        raise InvalidOptionError(
            f"evaluated={list(steps)} must start with step 0: nothing has been evaluated that it could be forecast from"
        )
    _check_rising(steps)
    return steps


def _check_rising(steps: Sequence[float]) -> None:
    for before, after in pairwise(steps):
        if after <= before:
            raise InvalidOptionError(
                f"evaluated={list(steps)} must increase, but step {after} follows {before}: sort it and drop repeats"
            )


def check_integer(name: str, value: object, *, least: int, most: int | None = None) -> int:
    """``value`` as an int within ``least … most``, or :class:`InvalidOptionError`."""
    span, top = (f"≥ {least}", LARGEST_INTEGER) if most is None else (f"within {least} … {most}", most)
    if _is_bool(value) or not hasattr(value, "__index__"):
        raise InvalidOptionError(f"{name}={value!r} is not an integer: give a whole number {span}")
    try:
        number = value.__index__()
    except TypeError as error:  # an array of several
        raise InvalidOptionError(f"{name}={value!r} is not an integer: give a whole number {span}") from error
    if not least <= number <= top:
        span = span if number < least else f"within {least} … {top}"
        raise InvalidOptionError(f"{name}={number} is out of range: give a whole number {span}")
    return int(number)


def check_number(
    name: str, value: object, *, least: float | None = None, most: float | None = None, finite: bool = True
) -> float:
    """``value`` as a float within ``least … most``, finite unless said otherwise, or :class:`InvalidOptionError`."""
    low, high = ("−∞" if least is None else f"{least:g}"), ("∞" if most is None else f"{most:g}")
    way_out = f"give a finite number within {low} … {high}"
    if _is_bool(value) or not hasattr(value, "__float__"):
        raise InvalidOptionError(f"{name}={value!r} is not a number: {way_out}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError) as error:  # too large, or an array of several
        raise InvalidOptionError(f"{name}={value!r} does not fit into a float: {way_out}") from error
    too_low = least is not None and number < least
    too_high = most is not None and number > most
    if (finite and not math.isfinite(number)) or too_low or too_high:
        raise InvalidOptionError(f"{name}={number:g} is out of range: {way_out}")
    return number


def _is_bool(value: object) -> bool:
    """Whether it is True or False, of Python or in an array: a flag where a number belongs is a mistake."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def is_list(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it can be read as a list of numbers: text and bytes iterate too, sets and mappings have no order."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Set | Mapping)


def check_evaluated_points(evaluated: Sequence[float]) -> Sequence[float]:
    """The evaluated steps of one branch: at least one, increasing; they need not start with 0."""
    if not evaluated:
        raise InvalidOptionError("evaluated=[] is empty: a forecast needs at least one evaluated step")
    _check_rising(evaluated)
    return evaluated
