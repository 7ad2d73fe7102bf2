"""Metrics of pixels and their neighbourhoods: PSNR, SSIM, MS-SSIM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .base import Metric, package

if TYPE_CHECKING:
    from collections.abc import Callable

TORCHMETRICS = package("torchmetrics.functional.image", "pip install 'spectrum-diffusion[metrics]'")


def _psnr(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    error = ((video - reference) ** 2).mean(dim=(1, 2, 3))  # (F,)
    return -10 * torch.log10(error)


def _ssim(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    # The window is 11x11: torchmetrics cuts it at 3.5 sigma.
    return _each_frame(lambda a, b: ssim(a, b, sigma=1.5, data_range=1.0), video, reference)


def _ms_ssim(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    return _each_frame(lambda a, b: ms_ssim(a, b, sigma=1.5, data_range=1.0), video, reference)


def _each_frame(
    score: Callable[[torch.Tensor, torch.Tensor], object], video: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Frame by frame, as a whole video in float64 and its five moments would fill the memory."""
    values = [torch.as_tensor(score(a[None], b[None])) for a, b in zip(video, reference, strict=True)]
    return torch.stack(values)  # (F,)


PSNR = Metric(
    name="psnr",
    title="PSNR",
    unit="dB",
    higher_is_better=True,
    score=_psnr,
    source="10 log10(1 / MSE) of values in [0, 1]",
)

SSIM = Metric(
    name="ssim",
    title="SSIM",
    higher_is_better=True,
    score=_ssim,
    needs=(TORCHMETRICS,),
    smallest=11,
    source="Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, 2004; 11x11 Gaussian of sigma 1.5, range 1, "
    "borders reflected",
)

MS_SSIM = Metric(
    name="ms_ssim",
    title="MS-SSIM",
    higher_is_better=True,
    score=_ms_ssim,
    needs=(TORCHMETRICS,),
    smallest=176,  # five scales: the last is a sixteenth, and must hold the window of 11
    source="Wang, Simoncelli, Bovik: Multi-scale Structural Similarity, 2003; as SSIM, at five scales",
)
