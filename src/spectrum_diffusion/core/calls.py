"""A denoiser's call as it was made, and who answers the calls of its modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

Proceed = Callable[..., Any]


@dataclass
class Arguments:
    """A denoiser's call as it was made: what to proceed with and its tensors by name."""

    proceed: Proceed
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors among the arguments, and in lists of them, by name or place."""
        named = [(str(i), value) for i, value in enumerate(self.args)] + list(self.kwargs.items())
        found = {}
        for name, value in named:
            items = value if isinstance(value, (list, tuple)) else (value,)
            found.update({f"{name}.{i}": t for i, t in enumerate(items) if isinstance(t, torch.Tensor)})
        return found

    def named(self, name: str) -> Any:
        """The argument of that name, by keyword or by its place in the forward's signature; None if not given."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = list(inspect.signature(self.module.forward).parameters) if self.args else []
        place = names.index(name) if name in names else len(self.args)
        return self.args[place] if place < len(self.args) else None

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def first(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        return next(iter(self.tensors.values()))

    def copied(self) -> Arguments:
        """The same call with containers and tensors of its own, for models that consume or overwrite what they get."""
        return replace(self, args=_copied(self.args), kwargs=_copied(dict(self.kwargs)))

    def proceed_with(self, value: torch.Tensor) -> Any:
        """Proceed with the first tensor argument replaced."""
        for place, old in enumerate(self.args):
            if isinstance(old, torch.Tensor):
                return self.proceed(*self.args[:place], value, *self.args[place + 1 :], **self.kwargs)
        name = next(name for name, old in self.kwargs.items() if isinstance(old, torch.Tensor))
        return self.proceed(*self.args, **{**self.kwargs, name: value})


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value


Around = Callable[[Arguments], Any]


class Intercepted(Protocol):
    """A module's interceptor: while ``around`` is set, it answers the module's calls."""

    around: Around | None


@contextmanager
def answering(places: Sequence[tuple[Intercepted, Around]]) -> Iterator[None]:
    """Let each function answer the calls of its module while the block lasts."""
    for place, around in places:
        place.around = around
    try:
        yield
    finally:
        for place, _ in places:
            place.around = None
