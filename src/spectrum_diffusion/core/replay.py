"""The steps of a scheduler: a step as a pipeline asks for it, and a gap of steps that is taken a second time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .calls import version_of
from .history import memory_of, over_batch


@dataclass
class StepCall:
    """A call of ``scheduler.step`` as the pipeline made it.

    Attributes:
        scheduler: whose step it is.
        take: the scheduler's own ``step``.
        bound: the arguments by name.
        computed: what each call of the denoisers returned at this step, where that is known.
    """

    scheduler: Any
    take: Callable[..., Any]
    bound: inspect.BoundArguments
    computed: tuple[Any, ...] = ()

    @property
    def output(self) -> torch.Tensor:
        """The guided output of the denoiser, (B, …)."""
        return self.bound.arguments["model_output"]  # type: ignore[no-any-return]

    @property
    def sample(self) -> torch.Tensor:
        """The noisy latents, (B, …)."""
        return self.bound.arguments["sample"]  # type: ignore[no-any-return]

    @property
    def branches(self) -> tuple[torch.Tensor, ...]:
        """The outputs of the guidance branches, each of the shape of the guided one; empty if they have other shapes.

        A branch is the first tensor of what a call returned. One call may return several, one after the other along the
        batch.
        """
        size, *rest = self.output.shape
        branches: list[torch.Tensor] = []
        for output in self.computed:
            tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)), None)
            if tensor is None or list(tensor.shape[1:]) != rest or tensor.shape[0] % size:
                return ()
            branches += tensor.split(size)
        return tuple(branches)

    def proceed(self) -> Any:
        """Take the step as it was asked for; what the scheduler returns."""
        return self.take(*self.bound.args, **self.bound.kwargs)

    def proceed_with(self, output: torch.Tensor, sample: torch.Tensor) -> Any:
        """Take the step with another output and sample; what the scheduler returns."""
        bound = inspect.BoundArguments(self.bound.signature, self.bound.arguments.copy())  # type: ignore[arg-type]
        bound.arguments.update(model_output=output, sample=sample)
        return self.take(*bound.args, **bound.kwargs)

    def emptied(self) -> StepCall:
        """The call without its output and sample, to be taken again with others."""
        arguments = {**self.bound.arguments, "model_output": None, "sample": None}
        bound = inspect.BoundArguments(self.bound.signature, arguments)  # type: ignore[arg-type]
        return replace(self, bound=bound, computed=())


class Replay:
    """The steps that a scheduler took since an evaluated one, to be taken again with other outputs.

    The scheduler's state is put back to that before the evaluated step and its own code takes the steps, so that the
    memory of a multistep scheduler is that of the corrected path.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._state: dict[str, Any] = {}
        self._start: torch.Tensor | None = None
        self._taken: list[tuple[StepCall, torch.Tensor]] = []  # each with the output that it was given
        self._handed: tuple[torch.Tensor, int] | None = None  # with its version
        # Whether each step of the gap was given the sample that the step before handed out: for all samples of the
        # batch, or, on the device, for each of them, (B,).
        self._followed: list[bool | torch.Tensor] = []

    @property
    def memory(self) -> dict[int, int]:
        """The storages that only this gap keeps and their bytes: outputs, the first sample, the scheduler's old state.

        See :func:`memory_of`.
        """
        start = () if self._start is None else (self._start,)
        copied = self._handed[:1] if self._handed is not None and self._handed[0].is_inference() else ()
        kept = memory_of((*(output for _, output in self._taken), *start, *copied, *_tensors_in(self._state)))
        current = memory_of(_tensors_in(vars(self._scheduler)))
        return {storage: nbytes for storage, nbytes in kept.items() if storage not in current}

    def begin(self, sample: torch.Tensor) -> None:
        """Begin a gap before an evaluated step, at a sample (B, …)."""
        self._state = _copied(vars(self._scheduler))
        self._start = sample
        self._taken.clear()
        self._followed.clear()

    def take(self, call: StepCall, output: torch.Tensor, sample: torch.Tensor, kept: torch.Tensor | None = None) -> Any:
        """Take a step and remember it; what the scheduler returns.

        Args:
            call: the step.
            output: what the scheduler is given, (B, …).
            sample: the noisy latents, (B, …).
            kept: a copy of the output that is kept anyway, to be remembered in its place.
        """
        if self._taken:
            self._followed.append(self._follows(call))
        result = call.proceed_with(output, sample)
        self._taken.append((call.emptied(), output if kept is None else kept))
        handed = sample_of(result)
        if handed.is_inference():  # which does not count how often it is written into: a copy tells by its values
            handed = handed.clone()
        self._handed = handed, version_of(handed)
        return result

    def reaches(self, call: StepCall) -> bool | torch.Tensor:
        """Whether each step of the gap, and this one, was given the sample that the step before handed out.

        For the whole batch; or, where samples had to be compared, for each, (B,) on the device.
        """
        followed = [*self._followed, self._follows(call)]
        if any(each is False for each in followed):
            return False
        apart = [each for each in followed if isinstance(each, torch.Tensor)]
        return torch.stack(apart).all(0) if apart else True

    def again(self, corrected: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Take the steps of the gap again.

        Args:
            corrected: from the number of steps since the evaluated one, 1, 2, …, and the output that was used: the
                output to use.

        Returns:
            The sample after the gap, (B, …).
        """
        assert self._start is not None
        state = vars(self._scheduler)
        state.clear()
        state.update(_copied(self._state))
        sample = self._start
        for since, (call, output) in enumerate(self._taken):
            sample = sample_of(call.proceed_with(corrected(since, output) if since else output, sample))
        return sample

    def again_for(
        self, chosen: torch.Tensor, sample: torch.Tensor, corrected: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Take the steps of the gap again for some samples of the batch. The others stay, in the scheduler too.

        Args:
            chosen: which samples, (B,).
            sample: the sample after the gap, (B, …).
            corrected: as in :meth:`again`.
        """
        state = vars(self._scheduler)
        before = _copied(state)
        again = self.again(corrected)
        state.update({name: _chosen(chosen, value, before[name]) for name, value in state.items()})
        return torch.where(over_batch(chosen, sample), again, sample)

    def _follows(self, call: StepCall) -> bool | torch.Tensor:
        if self._handed is None:
            return False
        handed, version = self._handed
        if version_of(handed) != version:
            return False
        return handed is call.sample or _is_copy(call.sample, handed)

    def clear(self) -> None:
        """Let go of every tensor."""
        self._state = {}
        self._taken.clear()
        self._followed.clear()
        self._start = self._handed = None


@contextmanager
def unchanged(scheduler: Any) -> Iterator[None]:
    """Put the scheduler's state back after a block in which it takes steps."""
    state = vars(scheduler)
    before = _copied(state)
    try:
        yield
    finally:
        state.clear()
        state.update(before)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy that lasts: schedulers write into their lists, and into sums of outputs (PNDM), in place."""
    return {name: _copy_of(value) for name, value in state.items()}


def _copy_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone() if value.dim() > 1 else value  # no copies of noise levels
    return value.copy() if type(value) in (list, dict) else value


def _chosen(chosen: torch.Tensor, value: Any, other: Any) -> Any:
    """A part of a scheduler's state with each sample from one of two: ``value`` for those chosen, (B,)."""
    if type(value) is list:
        return [_chosen(chosen, *pair) for pair in zip(value, other, strict=True)]
    if isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == len(chosen):
        return torch.where(over_batch(chosen, value), value, other)
    return value


def _tensors_in(state: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors of a scheduler's state, and those in its lists, such as the outputs of a multistep scheduler."""
    for value in state.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, torch.Tensor):
                yield item


def _is_copy(sample: torch.Tensor, handed: torch.Tensor) -> bool | torch.Tensor:
    """Which samples of the batch are what a step handed out, perhaps rounded to half precision meanwhile, (B,).

    Pipelines cut the frames that are sampled out of all of them (image to video), or keep latents in bfloat16.
    """
    if sample.shape != handed.shape or sample.device != handed.device:
        return False
    kinds = (handed.dtype, torch.bfloat16, torch.float16)
    return torch.stack([(handed.to(kind).to(sample.dtype) == sample).flatten(1).all(1) for kind in kinds]).any(0)


def sample_of(result: Any) -> torch.Tensor:
    """The sample that a scheduler's step returned."""
    return result[0] if isinstance(result, tuple) else result.prev_sample  # type: ignore[no-any-return]
