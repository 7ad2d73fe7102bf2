"""Forecasts along a path against closed forms, and their independence of the rest of the batch."""

from __future__ import annotations

import math

import pytest
import torch

from spectrum_diffusion.core.path import Path, agreement, damping_rate, reach
from spectrum_diffusion.core.schedule import nodes


def observed(function, steps: list[int], gain: float = 2.0) -> Path:
    path = Path(gain)
    for step in steps:
        path.append(step, (function(step),))
    return path


def line(step: float) -> torch.Tensor:
    return torch.tensor([[1.0 + 2.0 * step], [4.0 - step]])


def parabola(step: float) -> torch.Tensor:
    return torch.tensor([[1.0 + 2.0 * step + 0.5 * step**2]])


def test_a_line_is_foretold_exactly() -> None:
    path = observed(line, [0, 3, 5])
    for step in (6, 9, 20):
        assert torch.allclose(*path.line(step), line(step), rtol=1e-5)


def test_the_last_output_stands_until_hindsight_exists() -> None:
    assert torch.equal(*observed(line, [0, 3]).line(4), line(3))


def test_a_line_that_led_nowhere_is_not_followed() -> None:
    path = observed(lambda step: torch.tensor([[0.0 if step in (0, 8) else 1.0]]), [0, 4, 8])
    assert abs(float(*path.line(12))) < 5e-3


@pytest.mark.parametrize("share", [0.05, 0.3, 0.632, 0.9, 1.0])
def test_a_damped_line_covers_its_share_of_the_last_gap(share: float) -> None:
    assert float(reach(damping_rate(torch.tensor([share]), 4), 4)) == pytest.approx(4 * share, rel=1e-3)


def test_reach_of_a_known_rate() -> None:
    rate = 0.25
    share = (1 - math.exp(-4 * rate)) / (4 * rate)
    for horizon in (1, 5, 20):
        expected = (1 - math.exp(-rate * horizon)) / rate
        assert float(reach(damping_rate(torch.tensor([share]), 4), horizon)) == pytest.approx(expected, rel=1e-3)


def test_agreement_by_hand() -> None:
    outputs = [torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0]])]
    assert float(agreement([0, 2, 6], outputs)) == pytest.approx(0.5)  # foretold (2, 0), came (1, 3)


def test_a_parabola_is_corrected_exactly_at_full_strength() -> None:
    path = observed(parabola, [0, 4, 9])
    assert float(path.strength(parabola(0))) == 1.0
    for step in (5, 6, 8):
        assert torch.allclose(path.corrected(step, torch.zeros(1, 1)), parabola(step), rtol=1e-5)


def test_no_gain_corrects_nothing() -> None:
    path = observed(parabola, [0, 4, 9], gain=0.0)
    assert torch.equal(path.corrected(6, torch.full((1, 1), 7.0)), torch.full((1, 1), 7.0))


def test_a_sample_does_not_depend_on_the_others_of_its_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {step: torch.randn(3, 4, 5, generator=generator) for step in (0, 3, 7)}
    whole = observed(outputs.__getitem__, [0, 3, 7])
    for i in range(3):
        alone = observed(lambda step, i=i: outputs[step][i : i + 1], [0, 3, 7])
        assert torch.equal(next(whole.line(11))[i], next(alone.line(11))[0])
        used = torch.ones(3, 4, 5)
        assert torch.equal(whole.corrected(5, used)[i], alone.corrected(5, used[:1])[0])


@pytest.mark.parametrize("total", [1, 2, 8, 28, 50, 100, 1000])
def test_nodes(total: int) -> None:
    for count in {1, 2, 3, total // 4, total // 2, total} - {0}:
        if count > total:
            continue
        steps = nodes(total, count)
        assert len(steps) == count
        assert steps == sorted(set(steps))
        assert steps[0] == 0
        assert count == 1 or steps[-1] == total - 1
