"""Sites inside the denoiser, made of its modules by role.

During a call a *pass* answers the calls of these modules; the model's own forward goes on around them, uncopied.

- ``block``: on a skipped step it answers with a stand-in of its recorded output's structure, shapes and dtypes.
- ``module``: its output is (a part of) the feature; on a skipped step it answers with the forecast.
- ``tail``: its input is the feature; on a skipped step it is given the forecast.
- ``first``: the first block of the main stack, at which some methods look before they decide.
- ``embedder``: makes the time embedding, at which they look where the model modulates by nothing else (Wan).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.calls import Arguments, Intercepted, answering
from ..core.history import Feature
from ..core.run import Judge
from .passes import Deciding, P, Recording, Signal, Skipping, WorkCounter


class BlockSite:
    """A site inside the denoiser, made of modules by role; embeddings, modulation and projections run as always.

    Args:
        name: how it is named in reasons.
        roles: role → modules, in the order in which they run.
        interceptor: gives the interceptor of a module.
        base: the feature is what is added to the image tokens "before" or "after" the first block; "" is no residual.
        signal: what a method that decides while running looks at.
    """

    def __init__(
        self,
        name: str,
        roles: dict[str, list[nn.Module]],
        interceptor: Callable[[nn.Module], Intercepted],
        *,
        base: str = "",
        signal: Signal | None = None,
    ) -> None:
        self.name, self._base, self._signal = name, base, signal
        self._places = [(role, interceptor(module)) for role, modules in roles.items() for module in modules]

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._passing(Recording(self._base)) as record:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.feature), record.structures

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self._passing(Skipping(feature, structure, self._base)):
            return call.proceed(*call.args, **call.kwargs)

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        assert self._signal is not None
        with self._passing(Deciding(self._signal, judge, structure, self._base)) as deciding:
            output = call.proceed(*call.args, **call.kwargs)
        through = deciding.through
        if isinstance(through, Recording):
            return output, tuple(through.feature), through.structures
        return output, None, structure

    @contextmanager
    def _passing(self, through: P) -> Iterator[P]:
        with answering([(place, partial(_answer, through, role)) for role, place in self._places]):
            yield through


class ObservedSite(BlockSite):
    """No site of ours: another package's cache decides, and an evaluation tells how much of the denoiser ran."""

    def __init__(self, layers: list[nn.Module], interceptor: Callable[[nn.Module], Intercepted]) -> None:
        super().__init__("observed", {"layer": layers}, interceptor)

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._passing(WorkCounter()) as seen:
            output = call.proceed(*call.args, **call.kwargs)
        return output, (), seen.work


def _answer(through: Any, role: str, call: Arguments) -> Any:
    return getattr(through, role)(call)
