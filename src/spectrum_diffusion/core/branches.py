"""Which guidance branch, or which window of a large image, a denoiser call belongs to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .calls import Arguments
from .decider import Decider
from .history import History

MAX_ALIKE = 8
"""Calls of one name, or without a name, that are told apart within a step; names have no limit."""

TOO_MANY = f"more than {MAX_ALIKE} calls in a step that run.branch(name) does not tell apart"
UNCLEAR = "windows in a new order that run.branch(name) does not tell apart"

EXCERPT = 4096
"""Elements of a sample that are compared."""


@dataclass
class Branch:
    """One guidance branch of one denoiser: its history and how its calls are told from those of others."""

    label: str
    history: History
    shapes: dict[str, torch.Size]
    name: str | None = None
    decider: Decider | None = None
    structure: Any = None
    step: int = -1
    restarted: str = ""
    seen: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    lasting: set[str] = field(default_factory=set)
    sample: torch.Tensor | None = None

    def matches(self, call: Arguments) -> bool:
        """Whether every argument that lasted over the branch's steps (its conditioning) is this call's too."""
        return self.shapes == call.shapes and all(self._same(call, name) for name in self.lasting)

    def shared(self, call: Arguments) -> int:
        """How many of the call's tensors are those of the branch's last call."""
        return sum(self._same(call, name) for name in call.tensors)

    def observe(self, call: Arguments, step: int) -> None:
        """Remember the call: arguments that are the same tensor at two steps in a row last."""
        if self.seen:
            self.lasting = {name for name in call.tensors if self._same(call, name)}
        self.seen = {name: weakref.ref(tensor) for name, tensor in call.tensors.items()}
        self.shapes, self.step = call.shapes, step

    def restart(self, reason: str) -> Branch:
        """Begin the history anew; ``reason`` explains the fallbacks until it suffices again."""
        self.release()
        self.restarted = reason
        return self

    def release(self) -> None:
        """Let go of every feature, and of what the decider keeps."""
        self.history.clear()
        if self.decider is not None:
            self.decider.reset()

    @property
    def nbytes(self) -> int:
        """Memory of the features and of what the decider keeps, in bytes."""
        return self.history.nbytes + (self.decider.nbytes if self.decider is not None else 0)

    def _same(self, call: Arguments, name: str) -> bool:
        return name in self.seen and self.seen[name]() is call.tensors.get(name)


class Branches:
    """The branches of one denoiser in a run.

    Args:
        create: makes a branch with a label, for a call, with a name if the pipeline gives one.
    """

    def __init__(self, create: Callable[[str, Arguments, str | None], Branch]) -> None:
        self._create = create
        self.all: list[Branch] = []

    def of(self, name: str | None, step: int, call: Arguments) -> tuple[Branch, str]:
        """The branch of a call, and the reason if it is unclear.

        These tell, in this order: the pipeline's name of the branch, the arguments that last over the steps, the
        sample, and the place of the call in its step. A branch that stops or starts midway shifts the places, so a
        branch with lasting arguments takes no call without them. A call that fits no branch starts a new one.
        """
        alike = [branch for branch in self.all if branch.name == name]
        # The excerpt is taken before the call, because the model may write into the sample. A name that no other call
        # of the step bears tells the branch by itself.
        is_named = name is not None and len(alike) == 1 and alike[0].step != step
        sample = None if is_named else _excerpt(call)
        branch, reason = self._find(alike, name, step, call, sample)
        branch.sample = sample
        return branch, reason

    def _find(
        self, alike: list[Branch], name: str | None, step: int, call: Arguments, sample: torch.Tensor | None
    ) -> tuple[Branch, str]:
        fitting = [branch for branch in alike if branch.matches(call)]
        if free := [branch for branch in fitting if branch.step != step]:
            most = max(branch.shared(call) for branch in free)
            tied = [branch for branch in free if branch.shared(call) == most]
            if (closest := _closest(tied, [b for b in fitting if b.step == step], sample)) is not None:
                return closest, ""
            return self._new(name, call, UNCLEAR), UNCLEAR
        place = sum(branch.step == step for branch in alike)
        if place < len(alike) and alike[place].step != step and alike[place].shapes != call.shapes:
            return alike[place].restart("shape changed"), ""
        reason = TOO_MANY if len(alike) >= MAX_ALIKE else ""
        return self._new(name, call, reason), reason

    def _new(self, name: str | None, call: Arguments, unclear: str) -> Branch:
        again = sum(branch.name == name for branch in self.all)  # called twice under one name in a step
        label = str(len(self.all)) if name is None else f"{name}.{again}" if again else name
        branch = self._create(label, call, name)
        if not unclear:
            self.all.append(branch)
        return branch


def _closest(free: list[Branch], called: list[Branch], sample: torch.Tensor | None) -> Branch | None:
    """The branch whose last sample the call's goes on from; None if it goes on from none of them.

    Branches that guide one sample are given the same one, and their order tells them apart.

    Args:
        free: branches that the call may belong to, in order.
        called: those that have had their call in this step.
        sample: what the call is given.
    """
    others = [branch.sample for branch in (*free, *called)]
    if len(others) == 1 or sample is None or any(other is None for other in others):
        return free[0]
    last = torch.stack([other for other in others if other is not None])  # (B, N)
    similarity = float(torch.nn.functional.cosine_similarity(last, sample[None], dim=1)[: len(free)].max())  # (B,)
    distances: list[float] = (last - sample).norm(dim=1).tolist()
    to_free, to_called = distances[: len(free)], distances[len(free) :]
    if len(set(to_free)) == 1 and not any(to_called):
        return free[0]
    return free[to_free.index(min(to_free))] if similarity > 0.5 else None


def _excerpt(call: Arguments) -> torch.Tensor | None:
    """Elements of the call's sample in float32, (N,); None if they are too few to compare."""
    sample = next((tensor for tensor in call.tensors.values() if tensor.is_floating_point()), None)
    if sample is None or sample.numel() < 16:
        return None
    flat = sample.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // EXCERPT)].to(torch.float32, copy=True)
