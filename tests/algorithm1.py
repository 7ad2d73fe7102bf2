"""The paper's Algorithm 1, written a second time: slow, independent of the library, for comparison with it.

All blocks run at every step. At steps that are not evaluated the input of the block tail is replaced by a
forecast, computed in NumPy float64 in the primal form C = (ΦᵀΦ + λI)⁻¹ΦᵀH from all features evaluated so far.
Steps are counted by the calls of the scheduler's `step`, branches by the order of a denoiser's calls within
a step, so that nothing here rests on what the library holds to be the step or the branch.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pipelines import PipelineEntry
from torch import Tensor, nn

Branch = tuple[str, int]
"""A denoiser's component name and the order of the call inside the step: each has a history of its own."""


def basis(steps: Collection[int], total: int, degree: int) -> NDArray[np.float64]:
    """Chebyshev polynomials T₀ … T_M at τ(i) = 2i/T - 1, one row a step, by their cosine definition."""
    tau = np.array([2 * step / total - 1 for step in steps])  # (K,)
    return np.cos(np.outer(np.arccos(tau), np.arange(degree + 1)))  # (K, M+1)


def forecast(
    features: dict[int, NDArray[np.float64]], target: int, total: int, degree: int, ridge: float
) -> NDArray[np.float64]:
    """The feature at step `target`, from those of other steps (step → array of any one shape)."""
    phi = basis(features, total, degree)  # (K, M+1)
    history = np.stack([feature.ravel() for feature in features.values()])  # (K, F)
    coefficients = np.linalg.solve(phi.T @ phi + ridge * np.eye(degree + 1), phi.T @ history)  # (M+1, F)
    shape = next(iter(features.values())).shape
    return (basis([target], total, degree) @ coefficients).reshape(shape)


@dataclass
class Algorithm1:
    """One generation: what has been evaluated so far, and what was done at each step of each branch."""

    evaluated: Collection[int]
    total: int
    degree: int
    ridge: float
    min_history: int
    step: int = 0
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    features: dict[Branch, dict[int, NDArray[np.float64]]] = field(default_factory=lambda: defaultdict(dict))
    done: dict[Branch, dict[int, bool]] = field(default_factory=lambda: defaultdict(dict))

    def next_step(self) -> None:
        self.step += 1
        self.calls.clear()

    def at_tail(self, denoiser: str, feature: Tensor) -> Tensor:
        """The feature itself at an evaluated step, else its forecast."""
        branch = (denoiser, self.calls[denoiser])
        self.calls[denoiser] += 1
        history = self.features[branch]
        if any(known.shape != feature.shape for known in history.values()):
            history.clear()
        evaluate = self.step in self.evaluated or len(history) < self.min_history
        self.done[branch][self.step] = evaluate
        if evaluate:
            history[self.step] = feature.detach().double().numpy().copy()
            return feature
        predicted = forecast(history, self.step, self.total, self.degree, self.ridge)
        return torch.from_numpy(predicted).to(feature.dtype)


@contextmanager
def _replaced_tail(module: nn.Module, denoiser: str, run: Algorithm1) -> Iterator[None]:
    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        feature, *rest = args
        return (run.at_tail(denoiser, feature), *rest)

    handle = module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def counted_steps(scheduler: Any, next_step: Callable[[], None]) -> Iterator[None]:
    """Call `next_step` after each `step` of the scheduler."""
    original = scheduler.step

    # Pipelines inspect the signature of `step` to see which arguments it takes.
    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        next_step()
        return result

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


def slow_run(
    entry: PipelineEntry,
    pipe: Any,
    evaluated: Collection[int],
    total: int,
    degree: int = 4,
    ridge: float = 0.1,
    *,
    min_history: int = 2,
    steps: int = 10,
    seed: int = 0,
    **overrides: Any,
) -> tuple[Tensor, dict[Branch, dict[int, bool]]]:
    """One generation by Algorithm 1: its latents, and for each branch step → was it evaluated.

    `total` is T, the number of steps the call really has, `steps` the wanted `num_inference_steps`. A branch
    with fewer than `min_history` features of the present shape is evaluated although `evaluated` says no.
    """
    run = Algorithm1(evaluated, total, degree, ridge, min_history)
    with ExitStack() as stack:
        stack.enter_context(counted_steps(pipe.scheduler, run.next_step))
        for name in entry.denoisers:
            tail = getattr(getattr(pipe, name), entry.tail)
            stack.enter_context(_replaced_tail(tail, name, run))
        return entry.call(pipe, steps=steps, seed=seed, **overrides), dict(run.done)


def slow_spectrum(
    entry: PipelineEntry,
    pipe: Any,
    evaluated: Collection[int],
    total: int,
    degree: int = 4,
    ridge: float = 0.1,
    **options: Any,
) -> Tensor:
    """The latents of `slow_run`."""
    return slow_run(entry, pipe, evaluated, total, degree, ridge, **options)[0]
