"""The training loop of all models: Muon with AdamW, a cosine schedule, averaged weights, checkpoints."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates (cosine schedule with warm-up), decay of the averaged weights, when to save and report."""

    steps: int
    batch: int
    rate: float = 2e-3
    final_rate: float = 0.01
    warmup: int = 100
    average: float = 0.998
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 500

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


class Average:
    """Exponential moving average of a model's parameters, with a smaller decay at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in model.parameters()]

    def update(self, model: nn.Module, step: int) -> None:
        """Add the parameters after `step` to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the average."""
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.values, strict=True):
                parameter.copy_(value)


def make_optimizers(
    matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], config: OptimConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest, with the same learning rate."""
    decay = config.weight_decay
    adamw = torch.optim.AdamW(list(others), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.0)
    matrices = list(matrices)
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=config.rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


class Trainer:
    """The loop; it takes a model, its optimizers and a function from the step to the loss.

    The checkpoint contains everything that an interrupted run needs to continue. `steps` may change when a run
    continues: the schedule then leads to the new end.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        config: OptimConfig,
        folder: Path,
    ) -> None:
        self.name, self.model, self.optimizers, self.config = name, model, optimizers, config
        self.path = folder / f"{name}.pt"
        self.average = Average(model, config.average)
        self.step = 0
        self.seconds = 0.0
        self.losses: list[tuple[int, float]] = []

    def run(self, loss_at: Callable[[int], torch.Tensor]) -> None:
        """Train to the last step, from the checkpoint if there is one."""
        self.load()
        self.model.train()
        mean, start = 0.0, time.perf_counter()
        while self.step < self.config.steps:
            mean += self._update(loss_at(self.step)) / self.config.log_every
            self.step += 1
            if self.step % self.config.log_every == 0:
                self._report(mean, start)
                mean = 0.0
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                now = time.perf_counter()
                self.seconds, start = self.seconds + now - start, now
                self.save()

    def _update(self, loss: torch.Tensor) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.rate * self.config.rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.model, self.step)
        return loss.item()

    def _report(self, loss: float, start: float) -> None:
        self.losses.append((self.step, round(loss, 5)))
        seconds = self.seconds + time.perf_counter() - start
        logger.info("%s step %d of %d: loss %.4f, %.0f s", self.name, self.step, self.config.steps, loss, seconds)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def load(self) -> None:
        """Load the checkpoint, if there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.values = state["average"]
        for optimizer, value in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(value)
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        logger.info("%s continues from step %d", self.name, self.step)
