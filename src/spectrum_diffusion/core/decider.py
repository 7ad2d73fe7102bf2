"""What an adaptive method keeps of one guidance branch, and how it decides at run time."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .history import Feature


class Decider:
    """Decides for one guidance branch which steps are skipped. Every run creates new ones."""

    def skips(self, step: int, signal: torch.Tensor, may_skip: bool) -> bool:
        """Whether to skip a step. Called at every step of the branch, in order.

        Args:
            step: the step.
            signal: what the site shows of the call before it skips.
            may_skip: False where the step must be evaluated.
        """
        raise NotImplementedError

    def learn(self, signal: torch.Tensor, feature: Feature, output: Feature) -> None:
        """Take note of an evaluated step.

        Args:
            signal: what :meth:`skips` was given.
            feature: the site's feature.
            output: every floating tensor of the denoiser's output that the call computed.
        """

    def reset(self) -> None:
        """Forget everything: the branch starts anew, with other shapes."""

    def kept(self) -> Iterable[torch.Tensor | None]:
        """The tensors that it keeps, for the memory that a summary reports."""
        return ()

    @property
    def nbytes(self) -> int:
        """Memory of the kept tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.kept() if tensor is not None)
