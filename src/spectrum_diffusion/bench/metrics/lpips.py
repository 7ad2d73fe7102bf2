"""LPIPS with AlexNet: Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features, 2018.

    d(x, y) = Σ_l mean_hw w_l · (φ_l(x)/‖φ_l(x)‖ − φ_l(y)/‖φ_l(y)‖)²

φ_l are AlexNet's five activations, of images in [−1, 1] shifted and scaled channel by channel, and w_l the published
weights (version 0.1), which the wheel of torchmetrics holds. AlexNet's own weights come in no package: they are those
of torchvision, in the folder where PyTorch keeps what it has fetched. Written out here since torchvision, for five
convolutions, is the package that most often does not fit its PyTorch.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from .base import Metric
from .pixels import TORCHMETRICS

WEIGHTS_VARIABLE = "SPECTRUM_ALEXNET"
WEIGHTS_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-8  # torchmetrics adds it under the root, lpips 1e-10 beside it: both are far below any feature


class AlexNetFeatures(nn.Module):
    """The activations after each of AlexNet's five convolutions, under torchvision's names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
                "3": nn.Conv2d(64, 192, kernel_size=5, padding=2),
                "6": nn.Conv2d(192, 384, kernel_size=3, padding=1),
                "8": nn.Conv2d(384, 256, kernel_size=3, padding=1),
                "10": nn.Conv2d(256, 256, kernel_size=3, padding=1),
            }
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        activations = []
        for name, layer in self.features.items():
            if name in ("3", "6"):
                x = functional.max_pool2d(x, kernel_size=3, stride=2)
            x = layer(x).relu()
            activations.append(x)
        return activations


def weights_file() -> Path | None:
    """AlexNet's weights: the file named by ``SPECTRUM_ALEXNET``, or where torchvision keeps them."""
    if named := os.environ.get(WEIGHTS_VARIABLE):
        return Path(named) if Path(named).is_file() else None
    kept = sorted(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth"))
    return kept[-1] if kept else None


def _needs_weights() -> str:
    if weights_file() is not None:
        return ""
    if named := os.environ.get(WEIGHTS_VARIABLE):
        return f"{WEIGHTS_VARIABLE} names {named!r}, which is not a file: name the .pth of torchvision's AlexNet"
    return (
        "the weights of AlexNet are not here: fetch them once with "
        f"python -c \"import torch; torch.hub.load_state_dict_from_url('{WEIGHTS_URL}')\", "
        f"or name the file in {WEIGHTS_VARIABLE}"
    )


def _heads() -> list[torch.Tensor]:
    """The published weights w_l, each ``(1, C, 1, 1)``."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"] for index in range(5)]


@lru_cache(maxsize=1)
def _load(file: Path) -> tuple[AlexNetFeatures, list[torch.Tensor]]:
    network = AlexNetFeatures().eval().requires_grad_(False)
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network, _heads()


def _lpips(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    file = weights_file()
    assert file is not None  # asked for by `needs`
    network, heads = _load(file)
    values = [_distance(a, b, network, heads) for a, b in zip(video.float(), reference.float(), strict=True)]
    return torch.stack(values).double()  # (F,)


@torch.no_grad()
def _distance(
    frame: torch.Tensor, reference: torch.Tensor, network: AlexNetFeatures, heads: list[torch.Tensor]
) -> torch.Tensor:
    both = 2 * torch.stack([frame, reference]) - 1  # (2, 3, H, W)
    both = (both - both.new_tensor(SHIFT)[:, None, None]) / both.new_tensor(SCALE)[:, None, None]
    total = both.new_zeros(())
    for features, weight in zip(network(both), heads, strict=True):
        unit = features / (EPSILON + features.square().sum(dim=1, keepdim=True)).sqrt()  # (2, C, h, w)
        total += (weight[0] * (unit[0] - unit[1]).square()).sum(dim=0).mean()
    return total


LPIPS = Metric(
    name="lpips",
    title="LPIPS",
    higher_is_better=False,
    score=_lpips,
    needs=(TORCHMETRICS, _needs_weights),
    smallest=31,  # a smaller image leaves nothing for the second pooling
    source="Zhang et al.: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018; AlexNet, 0.1",
)
