"""Which branch a call belongs to, without a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrum_diffusion.core.branches import Branch, Branches
from spectrum_diffusion.core.calls import Arguments
from spectrum_diffusion.core.history import History


@pytest.fixture
def branches() -> Branches:
    return Branches(lambda label, call, name: Branch(label, History(), call.shapes, name))


def call_with(sample: torch.Tensor) -> Arguments:
    return Arguments(lambda *_: None, (sample,), {}, nn.Identity())


def labels(branches: Branches, name: str | None, steps: list[list[torch.Tensor]]) -> list[list[str]]:
    """The branches that take the calls of each step, by label."""
    taken = []
    for step, samples in enumerate(steps):
        taken.append([])
        for sample in samples:
            call = call_with(sample)
            branch, reason = branches.of(name, step, call)
            branch.observe(call, step)
            assert reason == ""
            taken[-1].append(branch.label)
    return taken


def test_a_name_alone_decides_and_no_sample_is_copied(branches: Branches) -> None:
    assert labels(branches, "cond", [[torch.randn(32)] for _ in range(3)]) == [["cond"]] * 3
    assert [branch.sample for branch in branches.all] == [None]


@pytest.mark.parametrize("name", [None, "cond"])
def test_windows_of_one_name_are_told_apart_by_their_samples(branches: Branches, name: str | None) -> None:
    first, second = torch.randn(2, 32)
    taken = labels(branches, name, [[first, second], [second, first], [first, second]])
    assert taken[1] == taken[0][::-1]
    assert taken[2] == taken[0]
    assert all(branch.sample is not None for branch in branches.all)
