"""From whatever a pipeline answers to the one form that metrics take: ``(F, 3, H, W)`` in [0, 1], in float64."""

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
"""How far out of [0, 1] a rounding may carry a value."""


def to_video(frames: Frames) -> torch.Tensor:
    """A picture or a video as floats, ``(F, 3, H, W)`` in [0, 1]; 8-bit values are divided by 255.

    Args:
        frames: a PIL picture or a list of them; an array ``(H, W, 3)`` or ``(F, H, W, 3)``; a tensor ``(3, H, W)`` or
            ``(F, 3, H, W)``. That is how diffusers orders the axes of each.

    Raises:
        InvalidOptionError: another shape or dtype, no frame, NaN or infinite values, or values out of [0, 1].
    """
    video = _tensor(frames)
    if video.ndim != 4 or video.shape[1] != 3 or 0 in video.shape:
        raise InvalidOptionError(
            f"frames of shape {tuple(video.shape)} (channels second) are no video: give tensors (F, 3, H, W), "
            "arrays (F, H, W, 3) or PIL pictures, with one frame or more"
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


def _stack(pictures: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    import numpy as np

    if not pictures:
        raise InvalidOptionError("there is no frame: give one picture or more")
    sizes = sorted({picture.shape[1::-1] for picture in pictures})
    if len(sizes) > 1:
        raise InvalidOptionError(f"the frames of one video have different sizes, {sizes}: give them one size")
    return np.stack(pictures)  # (F, H, W, 3)


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
            f"{bad} of {video.numel()} values are NaN or infinite: the picture is broken, often since its decoder "
            "overflowed in float16; decode in float32 or bfloat16"
        )
    low, high = video.min().item(), video.max().item()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise InvalidOptionError(
            f"values lie within [{low:.4g}, {high:.4g}], metrics take [0, 1]: divide 8-bit values by 255, or map "
            "[-1, 1] by (x + 1) / 2"
        )
