"""Forecasts along a path against closed forms, and their independence of the rest of the batch."""

from __future__ import annotations

import math
from itertools import pairwise

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


def test_the_rate_of_the_damping_is_that_of_its_share() -> None:
    shares = torch.cat([torch.linspace(1e-3, 1, 2000), torch.tensor([1 - 1e-6])])
    rates = damping_rate(shares, 4).double() * 4
    exact = torch.where(rates > 1e-9, -torch.expm1(-rates) / rates, 1.0)
    assert (exact - shares).abs().max() < 1e-5
    assert damping_rate(torch.tensor([0.0, 1.0]), 4).tolist() == [math.inf, 0.0]


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


def decay(rate: float, gap: int, path: Path, *, strength: float | None = None, evaluations: int = 40) -> list[float]:
    """|x| at the evaluated steps of Euler's x ← x + o for x′ = −Lx: o = −Lx there, forecast and corrected between."""
    x, start, used, sizes = torch.ones(1, 1, dtype=torch.float64), None, [], []
    for k in range(evaluations):
        step, output = k * gap, -rate * x
        path.append(step, (output,))
        if k:
            x = start
            for since, forecast in enumerate(used):
                right = path.corrected(step - gap + since, forecast) if since else forecast
                if strength is not None and since:
                    full = forecast + (right - forecast) / float(path.strength(forecast))
                    right = forecast + strength * (full - forecast)
                x = x + right
        sizes.append(abs(float(x)))
        start, used = x, [output, *(next(path.line(step + since)) for since in range(1, gap))]
        for forecast in used:
            x = x + forecast
    return sizes


class Undamped(Path):
    """Follows every line, however far it was off."""

    @property
    def agreements(self) -> list[torch.Tensor]:
        return [torch.ones_like(share) for share in super().agreements]


@pytest.mark.parametrize("gap", [2, 3, 5, 8])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0, 1.3, 1.7, 2.0])
def test_a_stiff_equation_does_not_grow_within_the_bound(gap: int, share: float) -> None:
    """Reuse over gaps of g steps is Euler's method with a step of gh, stable for ghL ≤ 2. So is this, at every gain.

    The first gap is corrected before there is hindsight, which may cost a factor of 3 once.
    """
    for gain in (0.0, 1.0, 2.0):
        sizes = decay(share / gap, gap, Path(gain))
        assert max(sizes[:3]) <= 3
        assert max(sizes[2:]) <= sizes[2] * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("gap", [3, 5, 8])
def test_without_hindsight_it_would_grow(gap: int) -> None:
    assert decay(1.7 / gap, gap, Undamped(0.0))[-1] > 1e3


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3, 1.0, 3.0])
def test_a_rough_trajectory_is_followed_no_worse_than_by_the_better_of_line_and_reuse(noise: float) -> None:
    """Each number of the output is smooth in time, with noise that differs at every step."""
    generator = torch.Generator().manual_seed(0)
    phase, speed = (torch.rand(1, 4096, generator=generator) * factor for factor in (6.3, 0.06))
    outputs = [
        torch.sin(phase + speed * step) + noise * 0.1 * torch.randn(1, 4096, generator=generator) for step in range(50)
    ]
    steps, errors = nodes(50, 14), {"damped": 0.0, "line": 0.0, "reuse": 0.0}
    path, undamped = Path(), Undamped()
    for step, after in pairwise(steps):
        path.append(step, (outputs[step],))
        undamped.append(step, (outputs[step],))
        if len(path) < 3:
            continue
        for skipped in range(step + 1, after):
            forecasts = {
                "damped": next(path.line(skipped)),
                "line": next(undamped.line(skipped)),
                "reuse": outputs[step],
            }
            for name, forecast in forecasts.items():
                errors[name] += float((forecast - outputs[skipped]).square().sum())
    assert errors["damped"] <= 1.05 * min(errors["line"], errors["reuse"])


def test_branches_of_a_guided_path_are_damped_as_it_is() -> None:
    """Two branches one after the other in a batch of two images: (4, 1) beside guided outputs (2, 1)."""
    curves = {
        "uncond": lambda step: torch.tensor([[math.sin(step)], [math.cos(2 * step)]]),
        "cond": lambda step: torch.tensor([[2.0 + 0.3 * step], [math.sin(3 * step)]]),
    }
    scale, steps = 4.0, [0, 3, 5]
    guided = Path()
    branches = Path(guided=guided, rows=4)
    for step in steps:
        uncond, cond = (curve(step) for curve in curves.values())
        guided.append(step, (uncond + scale * (cond - uncond),))
        branches.append(step, (torch.cat([uncond, cond]),))
    uncond, cond = next(branches.line(8)).chunk(2)
    assert torch.allclose(uncond + scale * (cond - uncond), *guided.line(8), rtol=1e-5)
    alone = Path()
    for step, feature in zip(branches.steps, branches.features, strict=True):
        alone.append(step, feature)
    assert not torch.allclose(*alone.line(8), *branches.line(8))


@pytest.mark.parametrize("steps", [[0, 3], [0, 3, 6]])
def test_a_guided_path_of_other_steps_damps_nothing(steps: list[int]) -> None:
    guided = observed(lambda step: torch.tensor([[math.sin(step)]]), steps)
    branch, alone = Path(guided=guided, rows=1), Path()
    for step in (0, 3, 5):
        for path in (branch, alone):
            path.append(step, (parabola(step),))
    assert torch.equal(*branch.line(7), *alone.line(7))


@pytest.mark.parametrize("rows", [3, 2])
def test_a_branch_of_another_batch_or_with_frames_in_it_is_damped_by_itself(rows: int) -> None:
    """Rows of frames that are folded into a batch of two can't be told apart by samples."""
    guided = observed(lambda step: torch.tensor([[math.sin(step)], [1.0]]), [0, 3, 5])
    branch, alone = Path(guided=guided, rows=rows), Path()
    for step in (0, 3, 5):
        for path in (branch, alone):
            path.append(step, (torch.tensor([[1.0], [step], [step**2], [step**3]][: 2 * rows], dtype=torch.float32),))
    assert torch.equal(*branch.line(7), *alone.line(7))


def test_a_list_of_samples_is_damped_sample_by_sample() -> None:
    """Each tensor is one sample, whose rows are channels: here two branches of two samples."""
    curves = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.5], [-1.0], [4.0]])]
    guided = Path()
    branches = Path(guided=guided, rows=None)
    for step in (0, 3, 5):
        guided.append(step, (torch.stack([curve * math.sin(step + i) for i, curve in enumerate(curves)]),))
        branches.append(
            step, tuple(scale * curve * math.sin(step + i) for scale in (1, 2) for i, curve in enumerate(curves))
        )
    (expected,) = guided.line(8)
    for number, line in enumerate(branches.line(8)):
        assert torch.allclose(line, (1 + number // 2) * expected[number % 2], rtol=1e-5)
