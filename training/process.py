"""How noise is added and what a denoiser predicts: the velocity of flow matching, or the noise."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional


class Process(Protocol):
    """A noising process; `even` are numbers in (0, 1), spread evenly over a batch."""

    def times(self, even: torch.Tensor) -> torch.Tensor:
        """The times (B,) of a batch, as its denoiser takes them."""

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """`latents` with `noise` added as at `times`."""

    def target(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the denoiser learns to predict."""

    def loss(self, output: torch.Tensor, target: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The error of a batch of outputs."""


def spread(times: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, …), for a product with `like`."""
    return times.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class FlowMatching:
    """A straight line from the latents to the noise; σ is logit-normal, with the sampler's shift."""

    shift: float

    def times(self, even: torch.Tensor) -> torch.Tensor:
        """σ (B,)."""
        sigma = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The point at σ on the line."""
        return latents + spread(times, latents) * (noise - latents)

    def target(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The velocity, noise − latents."""
        return noise - latents

    def loss(self, output: torch.Tensor, target: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The mean squared error."""
        return functional.mse_loss(output, target)


@dataclass(frozen=True)
class NoisePrediction:
    """DDPM with Stable Diffusion's betas: predict the noise in x = √ᾱ latents + √(1 − ᾱ) noise.

    The errors are weighted by min(SNR, γ) / SNR (Hang et al., 2023). Without weights, steps with little noise, which
    matter little, would dominate a short training.
    """

    first: float = 0.00085
    last: float = 0.012
    steps: int = 1000
    gamma: float = 5.0

    def kept(self, times: torch.Tensor) -> torch.Tensor:
        """ᾱ of the timesteps `times`."""
        betas = torch.linspace(self.first**0.5, self.last**0.5, self.steps) ** 2
        return (1 - betas).cumprod(0)[times]

    def times(self, even: torch.Tensor) -> torch.Tensor:
        """Uniform timesteps (B,)."""
        return (even * self.steps).long().clamp(max=self.steps - 1)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The mixture of unit variance."""
        kept = spread(self.kept(times), latents)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The noise."""
        return noise

    def loss(self, output: torch.Tensor, target: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The weighted mean squared error."""
        kept = self.kept(times)
        snr = kept / (1 - kept)
        error = (output - target).square().flatten(1).mean(1)  # (B,)
        return (error * snr.clamp(max=self.gamma) / snr).mean()
