"""Counting floating-point operations; a multiplication and its addition count as two."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def counting() -> FlopCounterMode:
    """A context that counts the FLOP of matrix products, convolutions and attention: ``.get_total_flops()``.

    PyTorch's counter has no formula for the CPU's attention kernel and would count it as zero.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention})
