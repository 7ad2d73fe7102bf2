"""Kept features and their weighted sum, against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectrum_diffusion.core import history
from spectrum_diffusion.core.forecast import chebyshev_weights
from spectrum_diffusion.core.history import History, joined, weighted_sum
from spectrum_diffusion.core.schedule import adaptive

STEPS = adaptive(50)[:-1]
WEIGHTS = chebyshev_weights(STEPS, 45, 50)


def features(count: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def filled(tensors: list[torch.Tensor], window: int | None = None) -> History:
    kept = History(window)
    for step, tensor in enumerate(tensors):
        kept.append(step, (tensor,))
    return kept


def exact(weights, tensors) -> np.ndarray:
    return sum(float(w) * x.double().numpy() for w, x in zip(weights, tensors, strict=True))


def test_forecast_is_the_double_precision_sum():
    tensors = features(len(STEPS), 2, 7, 5)
    (result,) = filled(tensors).forecast(WEIGHTS)
    assert result.shape == (2, 7, 5)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), exact(WEIGHTS, tensors), rtol=1e-5, atol=2e-6)


def test_double_precision_stays_double():
    tensors = [x.double() / 3 for x in features(len(STEPS), 4, 5)]
    (result,) = filled(tensors).forecast(WEIGHTS)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), exact(WEIGHTS, tensors), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_within_one_rounding_of_single(dtype):
    tensors = features(13, 40, 50, dtype=dtype)
    weights = np.linspace(-3, 3.5, 13)
    (half,) = filled(tensors).forecast(weights)
    (single,) = filled([x.float() for x in tensors]).forecast(weights)
    assert half.dtype == dtype
    # Half a unit in the last place, plus the dtype's own step near zero.
    rounding = torch.finfo(dtype).eps / 2 * single.abs() + torch.finfo(dtype).smallest_normal
    assert ((half.float() - single).abs() <= rounding).all()
    naive = sum(w * x for w, x in zip(weights.tolist(), tensors, strict=True))
    assert not ((naive.float() - single).abs() <= rounding).all()  # a sum kept in half would be seen


def test_several_tensors_a_feature_each_in_its_shape_and_dtype():
    kept = History()
    first, second = features(3, 2, 3), features(3, 4, dtype=torch.bfloat16, seed=1)
    for step in range(3):
        kept.append(step, (first[step], second[step]))
    single, half = kept.forecast([0.5, -1.0, 2.0])
    np.testing.assert_allclose(single.numpy(), exact([0.5, -1, 2], first), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half.float().numpy(), exact([0.5, -1, 2], second), rtol=2**-8, atol=1e-6)
    assert (single.shape, half.shape) == ((2, 3), (4,))
    assert (single.dtype, half.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_window_keeps_the_latest(window):
    tensors = features(7, 3)
    kept = filled(tensors, window)
    assert len(kept) == window
    assert kept.steps == list(range(7 - window, 7))
    for (stored,), tensor in zip(kept.features, tensors[-window:], strict=True):
        assert torch.equal(stored, tensor)
    assert kept.nbytes == window * 3 * 4


def test_all_are_kept_without_a_window():
    kept = filled(features(30, 3))
    assert (len(kept), kept.steps) == (30, list(range(30)))


def test_bytes_and_clear():
    kept = History()
    assert (len(kept), kept.nbytes) == (0, 0)
    kept.append(0, (torch.zeros(2, 3), torch.zeros(5, dtype=torch.bfloat16)))
    assert kept.nbytes == 2 * 3 * 4 + 5 * 2
    kept.append(1, (torch.zeros(2, 3), torch.zeros(5, dtype=torch.bfloat16)))
    assert kept.nbytes == 2 * (2 * 3 * 4 + 5 * 2)
    kept.clear()
    assert (len(kept), kept.nbytes, kept.steps, kept.features) == (0, 0, [], [])


def test_copies_do_not_follow_later_writes():
    kept, buffer = History(), torch.zeros(4)
    for step in range(3):
        buffer.fill_(float(step + 1))
        kept.append(step, (buffer,))
    buffer.fill_(99.0)
    (result,) = kept.forecast([100.0, 10.0, 1.0])
    assert result.tolist() == [123.0] * 4


def test_forecasts_leave_the_features_as_they_were():
    tensors = features(3, 6)
    kept = filled(tensors)
    (result,) = kept.forecast([0.0, 0.0, 1.0])
    result.fill_(7.0)
    assert torch.equal(kept.features[-1][0], tensors[-1])


def test_copies_carry_no_graph():
    kept, x = History(), torch.ones(3, requires_grad=True)
    kept.append(0, (x * 2,))
    assert not kept.features[0][0].requires_grad
    assert not next(kept.forecast([1.0])).requires_grad


def test_fits_compares_the_shapes():
    kept = History()
    assert kept.fits((torch.zeros(3),))
    kept.append(0, (torch.zeros(3), torch.zeros(2, 2)))
    assert kept.fits((torch.ones(3), torch.ones(2, 2)))
    assert not kept.fits((torch.ones(4), torch.ones(2, 2)))
    assert not kept.fits((torch.ones(3),))
    assert not kept.fits((torch.ones(3), torch.ones(4)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_weights_must_be_as_many_as_the_features(weights):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        list(filled(features(2, 3)).forecast(weights))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 24, 25])
def test_borders_of_chunks(monkeypatch, size):
    monkeypatch.setattr(history, "CPU_CHUNK", 8)
    tensors = features(5, size)
    weights = [0.5, -2.0, 0.0, 3.0, 1.25]
    result = weighted_sum(weights, tensors)
    assert result.shape == (size,)
    np.testing.assert_allclose(result.numpy(), exact(weights, tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_about_the_real_chunk(extra):
    tensors = features(2, history.CPU_CHUNK + extra)
    result = weighted_sum([2.0, -1.0], tensors)
    assert torch.equal(result, tensors[0] * 2 - tensors[1])


def test_features_that_are_not_contiguous():
    tensors = [x.transpose(0, 2) for x in features(3, 3, 4, 5)]
    (result,) = filled(tensors).forecast([1.0, -0.5, 0.25])
    assert result.shape == (5, 4, 3)
    np.testing.assert_allclose(result.numpy(), exact([1, -0.5, 0.25], tensors), rtol=1e-5, atol=1e-6)


def test_a_feature_of_no_weight_counts_for_nothing_even_if_not_finite():
    result = weighted_sum([0.0, 2.0], [torch.full((3,), torch.nan), torch.ones(3)])
    assert result.tolist() == [2.0] * 3
    assert weighted_sum([0.0], [torch.ones(3)]).tolist() == [0.0] * 3


def test_several_tensors_joined_are_one_vector():
    square, point = torch.arange(4.0).view(2, 2), torch.tensor([[5.0]])
    assert joined([square]) is square
    assert joined([square, point]).tolist() == [0.0, 1.0, 2.0, 3.0, 5.0]
