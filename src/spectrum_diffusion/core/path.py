"""A history that learns from hindsight how far a line through it can be followed, and corrects what was forecast.

A sampler asks for an output at every step; only some are evaluated. Between them an output is extrapolated along the
line through the last two evaluated outputs, damped by how well that line foretold the latest evaluated output. Once
the next output is evaluated, the outputs of the gap can be interpolated instead, and the sampler's steps over the gap
repeated with them (a predictor-corrector scheme without a second evaluation, PEC).

All of it works for each sample of the batch by itself and on the device of the outputs, without synchronization.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .forecast import interpolation_weights
from .history import Feature, History, over_batch, weighted_sum
from .replay import StepCall

ROUNDS = 4
"""Newton steps that find the rate of the damping as exactly as float32 resolves it."""
NODES = 3
"""Evaluated outputs through which a correction interpolates."""


class Path(History):
    """The latest evaluated features of a path, and how well the line through them foretold the last one.

    Args:
        gain: strength of the correction for a given agreement α, ``min(1, gain·α)``; 0 corrects nothing.
        guided: the path of the guided outputs, if these features are those of a guidance branch. What counts is the
            error that the sampler sees, so its lines are damped as those of the guided outputs.
        rows: size of the batch that the denoiser is called with; None if it is called with a list of samples. A feature
            with more rows, such as frames that are folded into the batch, is damped by itself: nothing tells which
            sample a row is of.
    """

    def __init__(self, gain: float = 2.0, guided: Path | None = None, rows: int | None = None) -> None:
        super().__init__(window=NODES)
        self.gain, self._guided, self._batch_rows = gain, guided, rows
        self._agreements: list[torch.Tensor] | None = None  # for each tensor of the feature, (B,)
        self._rates: list[torch.Tensor] | None = None  # likewise: κ of the damping

    def append(self, step: int, feature: Feature, *, copied: bool = False) -> None:
        """Keep a copy of the feature of an evaluated step, from which hindsight is had when it is asked for."""
        super().append(step, feature, copied=copied)
        self._agreements = self._rates = None

    def clear(self) -> None:
        super().clear()
        self._agreements = self._rates = None

    @property
    def agreements(self) -> list[torch.Tensor]:
        """How well the line foretold each tensor of the last feature, (B,); empty before the third."""
        if self._agreements is None:
            known = zip(*self.features, strict=True) if len(self) == NODES else ()
            self._agreements = [agreement(self.steps, tensors) for tensors in known]
        return self._agreements

    @property
    def rates(self) -> list[torch.Tensor]:
        """The rate κ at which the next line is damped, for each tensor of a feature, (B,); empty before the third."""
        if self._rates is None:
            self._rates = [damping_rate(share, self.steps[-1] - self.steps[-2]) for share in self.agreements]
        return self._rates

    def evaluated(self, step: int, call: StepCall) -> torch.Tensor:
        """Keep the output of an evaluated step; the output with which the scheduler takes it, (B, …)."""
        self.append(step, (call.output,))
        return call.output

    def skipped(self, step: int, call: StepCall) -> torch.Tensor:
        """The output with which the scheduler takes a skipped step, (B, …)."""
        (output,) = self.line(step)
        return output

    def line(self, step: int) -> Iterator[torch.Tensor]:
        """The feature at a later step, tensor by tensor: the last one plus the damped line.

        Until three features make hindsight possible, the last one is repeated.
        """
        if len(self) < NODES:
            yield from self.features[-1]
            return
        before, latest = self.features[-2:]
        gap, horizon = self.steps[-1] - self.steps[-2], step - self.steps[-1]
        for old, new, rate in zip(before, latest, self._damping(latest), strict=True):
            moved = new.to(_precise(new), copy=True).sub_(old)
            yield moved.mul_(over_batch(reach(rate, horizon) / gap, new)).add_(new).to(new.dtype)

    def _damping(self, feature: Feature) -> list[torch.Tensor]:
        """The rate κ for each tensor of a feature, (B,): that of the guided outputs, if they are known."""
        guided = self._guided
        if guided is None or guided.steps != self.steps:
            return self.rates
        (rate,) = guided.rates  # (b,): one call may hold several branches, one after the other
        if self._batch_rows is None:  # a tensor for each sample
            known = len(feature) % len(rate) == 0 and all(tensor.dim() for tensor in feature)
            return [_of_sample(rate, i, tensor) for i, tensor in enumerate(feature)] if known else self.rates
        if self._batch_rows % len(rate) or any(
            not tensor.dim() or tensor.shape[0] != self._batch_rows for tensor in feature
        ):
            return self.rates
        return [rate.repeat(self._batch_rows // len(rate)).to(tensor.device) for tensor in feature]

    def corrected(self, step: int, used: torch.Tensor) -> torch.Tensor:
        """The only tensor of the feature at a step of the last gap, moved from what was ``used`` to the interpolation.

        Args:
            step: the step, between the last two evaluated ones.
            used: what was forecast for it, (B, …).
        """
        weights = interpolation_weights(self.steps, step)
        moved = weighted_sum(weights, [feature[0] for feature in self.features]).to(_precise(used)).sub_(used)
        return moved.mul_(over_batch(self.strength(used), used)).add_(used).to(used.dtype)

    def strength(self, like: torch.Tensor) -> torch.Tensor:
        """Share of the correction that is applied, (B,)."""
        if not self.agreements:
            return like.new_full((like.shape[0],), min(1.0, self.gain), dtype=torch.float32)
        return (self.gain * self.agreements[0]).clamp(max=1.0)


def _of_sample(rate: torch.Tensor, number: int, tensor: torch.Tensor) -> torch.Tensor:
    """The rate of one sample for every row of its tensor."""
    return rate[number % len(rate)].expand(tensor.shape[0]).to(tensor.device)


def agreement(steps: Sequence[int], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """``α = (r·d)/(d·d)`` within 0 … 1 of the last of three outputs: r is its change, d the change the line foretold.

    Returns:
        float32, (B,): 1 where the line was right, 0 where it led nowhere.
    """
    (first, second, third), (a, b, c) = list(steps)[-3:], [_by_sample(output) for output in list(outputs)[-3:]]
    foretold = (b - a) * ((third - second) / (second - first))  # (B, N)
    actual = c - b  # (B, N)
    share = (actual * foretold).sum(1) / (foretold * foretold).sum(1).clamp_min(1e-20)
    return share.float().clamp(0.0, 1.0)


def damping_rate(agreement: torch.Tensor, gap: int) -> torch.Tensor:
    """The rate κ at which a damped line over a gap of g steps covers the share ``α = (1 − e^(−κg))/(κg)`` of it.

    Found by Newton's method from above, where it converges for every α, since nothing may be read back from the device.

    Args:
        agreement: α, (B,).
        gap: g ≥ 1.

    Returns:
        (B,), per step: 0 for α = 1, infinite for α = 0.
    """
    share = agreement.clamp(min=1e-3)
    product = torch.minimum(1 / share, 2 * (1 - share) / share)  # κg, at least; (B,)
    for _ in range(ROUNDS):
        slope = (torch.exp(-product) - share).clamp(max=-1e-7)
        product = (product + (torch.expm1(-product) + share * product) / slope).clamp(min=0)
    return torch.where(agreement > 0, product / gap, torch.inf)


def reach(rate: torch.Tensor, horizon: int) -> torch.Tensor:
    """Distance ``(1 − e^(−κh))/κ`` that a line damped at the rate κ covers within h steps, (B,) in steps."""
    return horizon * _share(rate * horizon)


def _share(rate: torch.Tensor) -> torch.Tensor:
    """``(1 − e^(−x))/x``, which is 1 at 0."""
    return torch.where(rate > 1e-4, -torch.expm1(-rate) / rate.clamp_min(1e-4), 1 - rate / 2)


def _by_sample(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_precise(tensor)).reshape(tensor.shape[0] if tensor.dim() else 1, -1)  # (B, N)


def _precise(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
