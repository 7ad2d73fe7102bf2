"""A call of a module, with its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Proceed = Callable[..., Any]


@dataclass
class Arguments:
    """A call of a module that was intercepted.

    Attributes:
        proceed: calls the module as it would have been called.
        args: positional arguments.
        kwargs: keyword arguments.
        module: the module.
    """

    proceed: Proceed
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors among the arguments, and in lists and tuples among them, by name or place."""
        named = [(str(i), value) for i, value in enumerate(self.args)] + list(self.kwargs.items())
        tensors = {}
        for name, value in named:
            items = value if isinstance(value, (list, tuple)) else (value,)
            tensors.update({f"{name}.{i}": t for i, t in enumerate(items) if isinstance(t, torch.Tensor)})
        return tensors

    def named(self, name: str) -> Any:
        """The argument of a name, passed by keyword or by position in the forward's signature; None if absent."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = list(inspect.signature(self.module.forward).parameters) if self.args else []
        place = names.index(name) if name in names else len(self.args)
        return self.args[place] if place < len(self.args) else None

    @cached_property
    def leaves(self) -> list[Any]:
        """Every value among the arguments, including nested values."""
        leaves: list[Any] = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return leaves

    @property
    def samples(self) -> list[torch.Tensor]:
        """The noisy samples: one tensor (B, …); or a list of them, one for each sample."""
        given = self._sample
        return list(given) if isinstance(given, (list, tuple)) else [given]

    @property
    def rows(self) -> int | None:
        """The size of the batch; None for a list of samples."""
        given = self._sample
        return given.shape[0] if isinstance(given, torch.Tensor) and given.dim() else None

    @property
    def _sample(self) -> Any:
        named = (self.named(name) for name in ("hidden_states", "sample", "x"))
        given = next((value for value in named if value is not None), None)
        if given is None:
            given = next((value for value in self.tensors.values() if value.is_floating_point()), [])
        return given

    def handed_on(self, output: Any) -> dict[int, int]:
        """The tensors of an output that are arguments of the call: id → place in :attr:`leaves`.

        A key-value cache is an example. The sample does not count, because a model may write its result into it.
        """
        returned = {id(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)}
        places = {id(leaf): place for place, leaf in enumerate(self.leaves) if id(leaf) in returned}
        samples = {id(sample) for sample in self.samples} if places else set()
        return {key: place for key, place in places.items() if key not in samples}

    def computed(self, output: Any) -> tuple[torch.Tensor, ...]:
        """The floating tensors of an output that the call computed, without those that are its arguments."""
        handed_on = self.handed_on(output)
        leaves = pytree.tree_leaves(output)
        return tuple(leaf for leaf in leaves if is_floating(leaf) and id(leaf) not in handed_on)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def first(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        return next(iter(self.tensors.values()))

    def copied(self) -> Arguments:
        """The call with copies of its tensors and containers, for models that consume or overwrite their arguments."""
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


def is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def version_of(tensor: torch.Tensor) -> int:
    """How often the tensor was written into; 0 for inference tensors, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version
