"""Tensors with values and tensors without in one operation."""

from __future__ import annotations

import torch

from spectrum_diffusion.core.mixed import Mixed, autocast_of_meta

MASK = torch.tensor([True, False, True, True])


def test_values_last_until_they_meet_a_tensor_without() -> None:
    weight = torch.empty(4, 5, device="meta")
    with Mixed():
        lengths = MASK.long().sum()
        assert int(lengths) == 3
        product = torch.ones(2, 4) @ weight
        assert (product + torch.arange(5)).is_meta
        assert weight[: int(lengths)].shape == (3, 5)
        assert product.to("cpu").is_meta


def test_a_mask_selects_as_many_as_it_has() -> None:
    tensor = torch.empty(4, 5, device="meta")
    with Mixed():
        assert tensor[MASK].shape == (3, 5)
        tensor[MASK] = torch.zeros(3, 5)
        tensor[:, 0][MASK] *= 0.0


def test_autocast_of_the_meta_device() -> None:
    original = torch.autocast
    with autocast_of_meta():
        with torch.autocast("meta", enabled=False), torch.autocast("cpu", torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.autocast is original
