"""Models of human vision that packages implement: FLIP, SSIMULACRA2, ColorVideoVDP."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from .base import Metric, package

TORCHVISION = package("torchvision", "install the torchvision made for this version of PyTorch")


def _flip(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    from flip_evaluator import evaluate

    pairs = zip(_channels_last(video), _channels_last(reference), strict=True)
    values = [evaluate(b.numpy(), a.numpy(), "LDR", applyMagma=False)[1] for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)  # (F,)


def _ssimulacra2(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    from ssimulacra2 import compute_ssimulacra2

    pairs = zip(_channels_last(video), _channels_last(reference), strict=True)
    values = [compute_ssimulacra2(_file(b), _file(a)) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64)  # (F,)


def _channels_last(video: torch.Tensor) -> torch.Tensor:
    return video.float().movedim(1, -1).contiguous()  # (F, 3, H, W) → (F, H, W, 3)


def _file(frame: torch.Tensor) -> io.BytesIO:
    """The package only reads 8-bit files."""
    file = io.BytesIO()
    Image.fromarray((frame * 255).round().byte().numpy()).save(file, "PPM")
    file.seek(0)
    return file


@lru_cache(maxsize=1)
def _cvvdp_model() -> Any:
    from pycvvdp import cvvdp

    return cvvdp(display_name="standard_4k", device=torch.device("cpu"), quiet=True)


def color_video_vdp(fps: float) -> Metric:
    """ColorVideoVDP at a number of frames per second, which does not matter for an image."""

    def score(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        rate = fps if len(video) > 1 else 0  # a rate of 0 means an image
        model = _cvvdp_model()
        quality, _ = model.predict(video.float(), reference.float(), dim_order="FCHW", frames_per_second=rate)
        return quality.double().reshape(1)

    return Metric(
        name="cvvdp",
        title="ColorVideoVDP",
        unit="JOD",
        higher_is_better=True,
        score=score,
        needs=(TORCHVISION, package("pycvvdp", "pip install cvvdp")),
        smallest=4,
        source="Mantiuk et al.: ColorVideoVDP, 2024; on the display standard_4k, 10 is no difference",
    )


FLIP = Metric(
    name="flip",
    title="FLIP",
    higher_is_better=False,
    score=_flip,
    needs=(package("flip_evaluator", "pip install 'spectrum-diffusion[metrics]'"),),
    source="Andersson et al.: FLIP: A Difference Evaluator for Alternating Images, 2020; 67 pixels a degree",
)

SSIMULACRA2 = Metric(
    name="ssimulacra2",
    title="SSIMULACRA2",
    higher_is_better=True,
    score=_ssimulacra2,
    needs=(package("ssimulacra2", "pip install 'spectrum-diffusion[metrics]'"),),
    # Below 225 pixels it has fewer than six scales, as in the reference code. Values of different sizes are then not
    # comparable.
    smallest=8,
    source="Sneyers: SSIMULACRA 2, 2023; of 8-bit values, 100 is no difference",
)

CVVDP = color_video_vdp(16)
"""At the 16 frames per second of Wan2.1."""
