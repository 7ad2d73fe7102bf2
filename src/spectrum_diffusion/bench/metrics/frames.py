"""Converts the output of any pipeline to the form that metrics take: ``(F, 3, H, W)`` in [0, 1], in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ...errors import InvalidOptionError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

Frames: TypeAlias = "torch.Tensor | np.ndarray[Any, Any] | Image | Sequence[Image]"

TOLERANCE = 1e-6
"""How far rounding may move a value out of [0, 1]."""


def to_video(frames: Frames) -> torch.Tensor:
    """An image or a video as floats, ``(F, 3, H, W)`` in [0, 1]; 8-bit values are divided by 255.

    Args:
        frames: a PIL image or a list of them; an array ``(H, W, 3)`` or ``(F, H, W, 3)``; a tensor ``(3, H, W)`` or
            ``(F, 3, H, W)``. diffusers orders the axes this way.

    Raises:
        InvalidOptionError: another shape or dtype, no frame, NaN or infinite values, or values out of [0, 1].
    """
    video = _tensor(frames)
    if video.ndim != 4 or video.shape[1] != 3 or 0 in video.shape:
        raise InvalidOptionError(
            f"frames of shape {tuple(video.shape)} (channels second) are not a video: give tensors (F, 3, H, W), "
            "arrays (F, H, W, 3) or PIL images, with one frame or more"
        )
    _check_values(video)
    return video


def _tensor(frames: Frames) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL.Image import Image

    if isinstance(frames, torch.Tensor):
        return _floats(frames.detach().cpu())
    if isinstance(frames, Image):
        frames = [frames]
    if not isinstance(frames, np.ndarray):
        frames = _stack([np.asarray(frame.convert("RGB")) for frame in frames])
    channels_last = torch.from_numpy(np.ascontiguousarray(frames))
    if channels_last.ndim not in (3, 4):
        return _floats(channels_last)
    return _floats(channels_last.movedim(-1, -3))  # (F, H, W, 3) → (F, 3, H, W)


def _stack(images: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    import numpy as np

    if not images:
        raise InvalidOptionError("there is no frame: give one image or more")
    sizes = sorted({image.shape[1::-1] for image in images})
    if len(sizes) > 1:
        raise InvalidOptionError(f"the frames of one video have different sizes, {sizes}: give them one size")
    return np.stack(images)  # (F, H, W, 3)


def _floats(values: torch.Tensor) -> torch.Tensor:
    import torch

    if values.ndim == 3:
        values = values[None]  # (3, H, W) → (1, 3, H, W)
    if values.dtype == torch.uint8:
        return values.double() / 255
    if not values.is_floating_point():
        raise InvalidOptionError(f"frames of {values.dtype} have no known range: give floats in [0, 1], or uint8")
    return values.double()


def _check_values(video: torch.Tensor) -> None:
    import torch

    bad = int((~torch.isfinite(video)).sum())
    if bad:
        raise InvalidOptionError(
            f"{bad} of {video.numel()} values are NaN or infinite: the image is broken, often because its decoder "
            "overflowed in float16; decode in float32 or bfloat16"
        )
    low, high = video.min().item(), video.max().item()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise InvalidOptionError(
            f"values lie within [{low:.4g}, {high:.4g}], metrics take [0, 1]: divide 8-bit values by 255, or map "
            "[-1, 1] by (x + 1) / 2"
        )
