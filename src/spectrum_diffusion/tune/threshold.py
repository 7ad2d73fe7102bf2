"""Calibration of an adaptive method for one model: its model-specific options, and a threshold for a wanted NFE.

TeaCache's polynomial is fitted as its authors do: the untouched pipeline samples the prompts, and over all pairs of
adjacent steps the change of the blocks' output (y) is fitted as a polynomial of degree 4 of the change of the modulated
input (x). MagCache's ratios are its γ_t, averaged over prompts and guidance branches.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.decider import Decider
from ..core.history import Feature
from ..core.schedule import check_integer, is_list
from ..core.summary import Summary
from ..core.words import SKIPPED_NOTHING
from ..errors import InvalidOptionError, SpectrumError, warn
from ..handle import enable_method
from ..methods import METHODS, AnyMethod, make_method
from ..methods.adaptive import relative_change
from ..plan import Plan, versions
from .driven import kind_of
from .samples import OnRun, Prompt, Samples

DEGREE = 4
ROUNDS = 14
"""Maximum number of bisections in the search for a threshold."""
CLOSE = 0.1
"""The search ends when the mean NFE is within this distance of the wanted one."""
HUGE = 1e6
"""A threshold that never forces an evaluation: it gives the lowest NFE that the other options allow."""


def tune_threshold(
    pipe: Any,
    method: str,
    prompts: Sequence[Prompt],
    *,
    nfe: int | Iterable[int] = 14,
    seeds: Sequence[int] = (0,),
    call: Mapping[str, Any] | None = None,
    on_run: OnRun = lambda _: None,
    **options: Any,
) -> list[Plan]:
    """Calibrate an adaptive method, and find its threshold for a wanted number of evaluations.

    Afterwards no method is enabled on the pipeline, even if one was before.

    Args:
        pipe: a diffusers pipeline.
        method: "teacache", "magcache", "easycache", "first-block-cache", or another method with a ``threshold``.
        prompts: the prompts of the calibration; or, for pipelines that need more, keyword arguments of their call.
        nfe: wanted number of evaluations, or several. The mean over all samples gets as close as possible.
        seeds: seeds of the noise; every prompt is sampled with every seed.
        call: further keyword arguments of the pipeline's call, such as ``num_inference_steps``.
        on_run: called after each generation with its purpose.
        options: options of the method, which stay fixed.

    Returns:
        A plan for each ``nfe``, for ``enable(pipe, plan=…)``; its record contains the "nfe" that was reached.

    Raises:
        InvalidOptionError: a method without a threshold, a wrong option, or an ``nfe`` that the method cannot reach.
        UnsupportedModelError: the method does not work on the pipeline's denoiser.
    """
    _check(method, options)
    if not callable(on_run):
        raise InvalidOptionError(f"on_run={on_run!r} is not callable: pass a function that takes a string")
    wanted = [check_integer("nfe", count, least=1) for count in (nfe if is_list(nfe) else [nfe])]
    if not wanted:
        raise InvalidOptionError("nfe=[] is empty: pass one or more numbers of evaluations")
    samples = Samples(prompts=prompts, seeds=seeds, call=call or {})
    fixed = {**_fit(pipe, method, options, samples, on_run), **options}
    search = ThresholdSearch(pipe, method, fixed, samples, on_run)
    for number in wanted:
        search.check(number)  # all numbers before the long search for the first
    return [search.plan(number) for number in wanted]


def _check(method: str, options: Mapping[str, Any]) -> None:
    tunable = [name for name, cls in METHODS.usable().items() if any(f.name == "threshold" for f in fields(cls))]
    if method in METHODS and method not in tunable:
        raise InvalidOptionError(f"{method} has no threshold to tune: tune one of {', '.join(tunable)}")
    if "threshold" in options:
        raise InvalidOptionError("threshold is what tune determines: leave it out, or enable the method with it")
    make_method(method, **options)


def _fit(
    pipe: Any, method: str, options: Mapping[str, Any], samples: Samples, on_run: OnRun
) -> dict[str, tuple[float, ...]]:
    """The method's model-specific option, measured on the untouched pipeline, unless it was passed."""
    if method not in FITS or FITS[method].option in options:
        return {}
    observer = FITS[method]()
    with enable_method(pipe, observer) as handle:
        samples.generate(pipe, handle, on_run, "calibration")
    return {observer.option: observer.result()}


@dataclass(frozen=True, kw_only=True)
class Observer(AnyMethod):
    """Evaluates every step and measures its features.

    Attributes:
        tracks: the measurements, a track for each branch of each run.
    """

    tracks: list[Any] = field(default_factory=list, compare=False)

    option: ClassVar[str] = ""
    """The option that it measures."""
    track: ClassVar[Callable[[], Decider]]
    """Creates a track."""

    @property
    def window(self) -> int:
        return 1

    def evaluates(self, step: int, total: int) -> bool:
        return True

    def untouched(self, total: int) -> bool:
        return False  # no warning: evaluating every step is intended

    def decider(self, total: int) -> Decider:
        self.tracks.append(type(self).track())
        return self.tracks[-1]  # type: ignore[no-any-return]

    def result(self) -> tuple[float, ...]:
        """The value of the option, from all tracks."""
        raise NotImplementedError


class Changes(Decider):
    """The relative changes x and y between adjacent steps of one branch."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self.reset()

    def reset(self) -> None:
        self.signal: torch.Tensor | None = None
        self.output: torch.Tensor | None = None

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        return False

    def learn(self, signal: torch.Tensor, feature: Feature, output: Feature) -> None:
        if self.signal is not None and self.output is not None:
            self.pairs.append((relative_change(signal, self.signal), relative_change(feature[0], self.output)))
        self.signal, self.output = signal.detach().clone(), feature[0].detach().clone()

    def kept(self) -> tuple[torch.Tensor | None, ...]:
        return (self.signal, self.output)


class Magnitudes(Decider):
    """The ratios γ_t of the steps of one branch."""

    def __init__(self) -> None:
        self.ratios: dict[int, float] = {}
        self.step = 0
        self.reset()

    def reset(self) -> None:
        self.norms: torch.Tensor | None = None

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        self.step = step
        return False

    def learn(self, signal: torch.Tensor, feature: Feature, output: Feature) -> None:
        norms = feature[0].detach().float().norm(dim=-1)  # (B, N, D) -> (B, N)
        if self.norms is not None:
            self.ratios[self.step] = float((norms / self.norms.clamp_min(1e-8)).mean())
        self.norms = norms

    def kept(self) -> tuple[torch.Tensor | None, ...]:
        return (self.norms,)


@dataclass(frozen=True, kw_only=True)
class ChangesObserver(Observer):
    """Measures TeaCache's coefficients."""

    site: str = "watched"
    sites: ClassVar[tuple[str, ...]] = ("watched",)
    option: ClassVar[str] = "coefficients"
    track: ClassVar[Callable[[], Decider]] = Changes

    def result(self) -> tuple[float, ...]:
        pairs = [pair for track in self.tracks for pair in track.pairs if all(map(math.isfinite, pair))]
        xs, ys = np.array(pairs).reshape(-1, 2).T  # each (P,)
        distinct = len(np.unique(xs))
        if not distinct:
            raise SpectrumError("the runs have no adjacent steps, so no polynomial can be fitted: pass more steps")
        return _rounded(np.polyfit(xs, ys, min(DEGREE, distinct - 1)))


@dataclass(frozen=True, kw_only=True)
class MagnitudesObserver(Observer):
    """Measures MagCache's ratios of steps 0 … T−1; 1 for a step without a previous one."""

    site: str = "residual"
    sites: ClassVar[tuple[str, ...]] = ("residual",)
    option: ClassVar[str] = "ratios"
    track: ClassVar[Callable[[], Decider]] = Magnitudes

    def result(self) -> tuple[float, ...]:
        by_step: dict[int, list[float]] = {}
        for track in self.tracks:
            for step, ratio in track.ratios.items():
                by_step.setdefault(step, []).append(ratio)
        return _rounded(statistics.fmean(by_step.get(step, [1.0])) for step in range(max(by_step, default=0) + 1))


FITS: dict[str, type[Observer]] = {"teacache": ChangesObserver, "magcache": MagnitudesObserver}
"""The methods with a model-specific option."""


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values)


class ThresholdSearch:
    """Finds the threshold of a method for a wanted number of evaluations, by running it.

    Args:
        pipe: the pipeline.
        method: name of the method.
        options: options of the method, except the threshold.
        samples: what the pipeline samples for each threshold.
        on_run: called after each generation with its purpose.
    """

    def __init__(self, pipe: Any, method: str, options: dict[str, Any], samples: Samples, on_run: OnRun) -> None:
        self.pipe, self.method, self.options = pipe, method, options
        self.samples, self.on_run = samples, on_run
        summaries, self.model = self._generated(HUGE)
        self.steps, self.fewest = summaries[-1].steps, _mean_nfe(summaries)
        self._tried = {HUGE: self.fewest, 0.0: float(self.steps)}

    def check(self, wanted: int) -> None:
        """Raise :class:`InvalidOptionError` if no threshold gives that many evaluations."""
        if not self.fewest - 0.5 < wanted <= self.steps:
            raise InvalidOptionError(
                f"nfe={wanted} is out of reach of {self.method}, which evaluates {self.fewest:g} … {self.steps} of "
                f"{self.steps} steps here: pass a number within this range, or other options (warmup, limit …)"
            )

    def plan(self, wanted: int) -> Plan:
        """The plan with the threshold whose mean NFE is nearest to the wanted one."""
        threshold = self._nearest(wanted)
        if abs((reached := self.evaluations(threshold)) - wanted) >= 0.5:
            warn(f"no threshold brings {self.method} to nfe={wanted} on these prompts: the nearest is {reached:g}")
        options = {**self.options, "threshold": threshold}
        record = {
            "steps": self.steps,
            "wanted_nfe": wanted,
            "nfe": reached,
            "versions": versions(),
            "provenance": self.samples.to_dict(),
        }
        values = make_method(self.method, **options).options()
        return Plan(method=self.method, options={k: values[k] for k in options}, model=self.model, record=record)

    def evaluations(self, threshold: float) -> float:
        """The mean NFE over all samples."""
        if threshold not in self._tried:
            self._tried[threshold] = _mean_nfe(self._generated(threshold)[0])
        return self._tried[threshold]

    def _generated(self, threshold: float) -> tuple[list[Summary], str]:
        """The summary of every generation, and the kind of the denoisers."""
        method = make_method(self.method, **{**self.options, "threshold": threshold})
        with warnings.catch_warnings(), enable_method(self.pipe, method) as handle:
            # A threshold on the way to the wanted one may skip nothing.
            warnings.filterwarnings("ignore", message=f".*{SKIPPED_NOTHING}")
            return self.samples.generate(self.pipe, handle, self.on_run, f"threshold {threshold:.4g}"), kind_of(handle)

    def _nearest(self, wanted: int) -> float:
        low = high = 0.1
        while self.evaluations(high) > wanted and high < HUGE:
            high *= 4
        while self.evaluations(low) < wanted and low > 1 / HUGE:
            low /= 4
        for _ in range(ROUNDS):
            if any(abs(count - wanted) <= CLOSE for count in self._tried.values()):
                break
            middle = float(f"{math.sqrt(low * high):.4g}")
            if self.evaluations(middle) > wanted:
                low = middle
            else:
                high = middle
        return min(self._tried, key=lambda threshold: (abs(self._tried[threshold] - wanted), threshold))


def _mean_nfe(summaries: Sequence[Summary]) -> float:
    return statistics.fmean(summary.nfe for summary in summaries)
