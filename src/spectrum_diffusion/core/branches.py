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
"""How many calls of one name, or without a name, are told apart within a step. The number of names has no limit."""

TOO_MANY = f"more than {MAX_ALIKE} calls in a step that run.branch(name) does not tell apart"
UNCLEAR = "windows in a new order that run.branch(name) does not tell apart"

EXCERPT = 4096
"""How many elements of a sample are compared, at least."""


@dataclass
class Conditioning:
    """What tells by its tensors whether a call has the conditioning of the call at the step before.

    Attributes:
        seen: the tensors of the last call, by argument.
        lasting: arguments that were the same tensor at two steps in a row.
    """

    seen: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    lasting: set[str] = field(default_factory=set)

    def matches(self, call: Arguments) -> bool:
        """Whether the call has every argument that lasts over the steps."""
        return all(self._same(call, name) for name in self.lasting)

    def shared(self, call: Arguments) -> int:
        """How many tensors the call shares with the last one."""
        return sum(self._same(call, name) for name in call.tensors)

    def observe(self, call: Arguments) -> None:
        """Remember a call."""
        if self.seen:
            self.lasting = {name for name in call.tensors if self._same(call, name)}
        self.seen = {name: weakref.ref(tensor) for name, tensor in call.tensors.items()}

    def _same(self, call: Arguments, name: str) -> bool:
        return name in self.seen and self.seen[name]() is call.tensors.get(name)


@dataclass
class Branch:
    """One guidance branch of one denoiser: its history, and what tells its calls from those of other branches.

    Attributes:
        label: its name in summaries.
        history: the features of its evaluated steps.
        shapes: shapes of the tensors of its last call, by argument.
        name: the name that the pipeline gives it, if any.
        decider: decides at run time, for adaptive methods.
        structure: what the site needs to know of the last evaluated call.
        step: step of its last call.
        restarted: why its history started anew, if it did.
        conditioning: of its last calls.
        sample: elements of the sample of its last call, (N,).
    """

    label: str
    history: History
    shapes: dict[str, torch.Size]
    name: str | None = None
    decider: Decider | None = None
    structure: Any = None
    step: int = -1
    restarted: str = ""
    conditioning: Conditioning = field(default_factory=Conditioning)
    sample: torch.Tensor | None = None

    def matches(self, call: Arguments) -> bool:
        """Whether the call has the branch's shapes and conditioning."""
        return self.shapes == call.shapes and self.conditioning.matches(call)

    def observe(self, call: Arguments, step: int) -> None:
        """Remember a call of the branch."""
        self.conditioning.observe(call)
        self.shapes, self.step = call.shapes, step

    def restart(self, reason: str) -> Branch:
        """Start the history anew; ``reason`` explains the fallbacks until it suffices again."""
        self.release()
        self.restarted = reason
        return self

    def release(self) -> None:
        """Free every feature, and what the decider keeps."""
        self.history.clear()
        if self.decider is not None:
            self.decider.reset()

    @property
    def nbytes(self) -> int:
        """Memory of the features and of what the decider keeps, in bytes."""
        return self.history.nbytes + (self.decider.nbytes if self.decider is not None else 0)


class Branches:
    """The branches of one denoiser in a run.

    Args:
        create: returns a new branch, from its label, its first call and the pipeline's name for it, if any.
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
        # The excerpt is taken before the call, because the model may write into the sample. None is needed if the name
        # alone identifies the branch.
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
            most = max(branch.conditioning.shared(call) for branch in free)
            tied = [branch for branch in free if branch.conditioning.shared(call) == most]
            if (closest := _closest(tied, [b for b in fitting if b.step == step], sample)) is not None:
                return closest, ""
            return self._new(name, call, UNCLEAR), UNCLEAR
        place = sum(branch.step == step for branch in alike)
        if place < len(alike) and alike[place].step != step and alike[place].shapes != call.shapes:
            return alike[place].restart("shape changed"), ""
        reason = TOO_MANY if len(alike) >= MAX_ALIKE else ""
        return self._new(name, call, reason), reason

    def _new(self, name: str | None, call: Arguments, unclear: str) -> Branch:
        namesakes = sum(branch.name == name for branch in self.all)
        label = str(len(self.all)) if name is None else f"{name}.{namesakes}" if namesakes else name
        branch = self._create(label, call, name)
        if not unclear:
            self.all.append(branch)
        return branch


def _closest(free: list[Branch], called: list[Branch], sample: torch.Tensor | None) -> Branch | None:
    """The branch whose last sample is nearest to the call's; None if no branch has a similar one.

    Branches that guide the same sample are told apart by the order of their calls.

    Args:
        free: branches that the call may belong to, in order.
        called: branches that have had their call in this step.
        sample: elements of the call's sample, (N,).
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
    """Evenly spaced elements of the call's sample in float32, (N,); None if it has too few to compare."""
    sample = next((tensor for tensor in call.tensors.values() if tensor.is_floating_point()), None)
    if sample is None or sample.numel() < 16:
        return None
    flat = sample.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // EXCERPT)].to(torch.float32, copy=True)
