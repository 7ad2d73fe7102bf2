"""A thin subclass is its plain class to all who ask, and its copies are plain."""

from __future__ import annotations

import abc
import copy
import operator
import pickle

import pytest

from spectrum_diffusion.core.subclass import thin_subclass


class Plain:
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def size(self) -> int: ...


class Concrete(Abstract):
    def size(self) -> int:
        return 1


@pytest.mark.parametrize("cls", [Plain, Concrete])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_class_equals_the_plain_one(cls: type, depth: int) -> None:
    thin = cls
    for _ in range(depth):
        thin = thin_subclass(thin, {})
    instance = cls()
    instance.__class__ = thin
    assert type(instance) is thin
    assert thin is not cls
    for same in (
        operator.eq(thin, cls),
        operator.eq(cls, thin),
        not operator.ne(thin, cls),
        not operator.ne(cls, thin),
    ):
        assert same
    assert {cls: "found"}[thin] == "found"
    assert thin not in (int, Abstract)


@pytest.mark.parametrize("cls", [Plain, Concrete])
def test_copies_are_plain(cls: type) -> None:
    instance = cls()
    instance.__class__ = thin_subclass(cls, {})
    for copied in (copy.copy(instance), copy.deepcopy(instance), pickle.loads(pickle.dumps(instance))):
        assert type(copied) is cls
