"""What a pipeline's call takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call by name, ``self`` among them."""
    return inspect.signature(type(pipe).__call__).parameters


def size_factor(pipe: Any) -> int:
    """What both sides must be multiples of; a processor's factor counts the patches too."""
    for name in ("image_processor", "video_processor"):
        if (processor := getattr(pipe, name, None)) is not None:
            return int(processor.config.vae_scale_factor)
    return int(getattr(pipe, "vae_scale_factor", 1))
