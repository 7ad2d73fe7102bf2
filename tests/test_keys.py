"""Keys of results: equal for equal content, and different for different content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spectrum_diffusion.keys import key_of


def changed_in_the_middle(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    changed.view(-1)[changed.numel() // 2] += 1000
    return changed


LATENTS = torch.arange(10_000.0).reshape(100, 100)  # too many for their text to show
AS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda values: values,
    "half": lambda values: (values / 1e4).bfloat16().t(),
    "scalar": lambda values: values[50, 0],
    "array": lambda values: np.asarray(values),
    "image": lambda values: Image.fromarray(values.numpy().astype(np.uint8)),
    "list": lambda values: [{"latents": values}],
}


@pytest.mark.parametrize("name", AS)
def test_a_key_tells_what_values_hold(name: str) -> None:
    made = AS[name]
    key = key_of(call={"latents": made(LATENTS)})
    assert key == key_of(call={"latents": made(LATENTS.clone())})
    assert key != key_of(call={"latents": made(changed_in_the_middle(LATENTS))})


def test_shape_and_dtype_count() -> None:
    zeros = torch.zeros(4)
    assert len({key_of(x=x) for x in (zeros, zeros.view(2, 2), zeros.int(), zeros.bool(), zeros.numpy())}) == 5
