"""Splits the output of a call into the tensors that are forecast and the frame around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..core.calls import Arguments, is_floating
from ..core.history import Feature


class Gap(Enum):
    """Marks the place of a forecast tensor. Not None, because outputs contain None."""

    FORECAST = "forecast"


@dataclass(frozen=True)
class ReturnedArgument:
    """Marks the place of an argument that the output returns, such as a key-value cache.

    Attributes:
        place: its place among the call's leaves.
    """

    place: int


class Frame(NamedTuple):
    """An output without the tensors that are forecast.

    Attributes:
        leaves: its values; a forecast tensor is a :class:`Gap`, a returned argument a :class:`ReturnedArgument`.
        spec: its structure, as pytree has it.
    """

    leaves: list[Any]
    spec: Any

    @classmethod
    def of(cls, call: Arguments, output: Any) -> tuple[Feature, Frame]:
        """The floating tensors that the call computed, and the frame of its output."""
        handed_on = call.handed_on(output)
        feature: list[torch.Tensor] = []
        frame: list[Any] = []
        leaves, spec = pytree.tree_flatten(output)
        for leaf in leaves:
            if id(leaf) in handed_on:
                frame.append(ReturnedArgument(handed_on[id(leaf)]))
            elif is_floating(leaf):
                feature.append(leaf)
                frame.append(Gap.FORECAST)
            else:
                frame.append(leaf)
        return tuple(feature), cls(frame, spec)

    def filled(self, call: Arguments, feature: Iterator[torch.Tensor]) -> Any:
        """The output of a skipped call: forecasts in the gaps, and its own arguments where the output returns them."""

        def leaf_of(leaf: Any) -> Any:
            if leaf is Gap.FORECAST:
                return next(feature)
            return call.leaves[leaf.place] if isinstance(leaf, ReturnedArgument) else leaf

        return pytree.tree_unflatten([leaf_of(leaf) for leaf in self.leaves], self.spec)
