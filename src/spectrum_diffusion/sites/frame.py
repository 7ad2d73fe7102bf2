"""A call's output as the tensors that are forecast, and the frame that holds them."""

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
    """Where a forecast tensor goes. Not None, which is a value that outputs have."""

    FORECAST = "forecast"


@dataclass(frozen=True)
class HandedOn:
    """Where the output hands on what the call was given, such as a cache of keys and values.

    Attributes:
        place: its place among the call's leaves.
    """

    place: int


class Frame(NamedTuple):
    """An output without the tensors that are forecast."""

    leaves: list[Any]
    spec: Any

    @classmethod
    def of(cls, call: Arguments, output: Any) -> tuple[Feature, Frame]:
        """Take an output apart: the floating tensors that the call computed, and their frame."""
        handed_on = call.handed_on(output)
        feature: list[torch.Tensor] = []
        frame: list[Any] = []
        leaves, spec = pytree.tree_flatten(output)
        for leaf in leaves:
            if id(leaf) in handed_on:
                frame.append(HandedOn(handed_on[id(leaf)]))
            elif is_floating(leaf):
                feature.append(leaf)
                frame.append(Gap.FORECAST)
            else:
                frame.append(leaf)
        return tuple(feature), cls(frame, spec)

    def filled(self, call: Arguments, feature: Iterator[torch.Tensor]) -> Any:
        """The output of a skipped call: forecasts in the gaps, and what this call was given where that is handed on."""

        def leaf_of(leaf: Any) -> Any:
            if leaf is Gap.FORECAST:
                return next(feature)
            return call.leaves[leaf.place] if isinstance(leaf, HandedOn) else leaf

        return pytree.tree_unflatten([leaf_of(leaf) for leaf in self.leaves], self.spec)
