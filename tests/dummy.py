"""A denoiser with numbers that can be computed by hand."""

from __future__ import annotations

import torch
from torch import nn


class Add(nn.Module):
    """Adds a number and counts its runs."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number, self.runs = number, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + self.number


class Dummy(nn.Module):
    """``(x + 1 + 2) · 10 + x``: the blocks add 3, the tail multiplies, what is outside of both adds x."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Add(1.0), Add(2.0)])
        self.tail = Multiply()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x
        for block in self.blocks:
            hidden = block(hidden)
        return self.tail(hidden) + x


class Multiply(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * x
