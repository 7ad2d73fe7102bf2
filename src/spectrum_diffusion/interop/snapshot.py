"""Removal of what other packages' caches leave behind on a model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..sites import denoisers

LEFTOVERS = {
    *("forward", "_diffusers_hook", "_cache_config"),
    *("_is_patched", "_orig_forward", "_original_forward", "_is_cached", "_context_manager", "_context_names"),
}
"""Attributes that the caches of diffusers and cache-dit may leave on a module when they are removed."""


class Snapshot:
    """The attributes of modules before another package's cache is installed, to restore them afterwards.

    Args:
        models: the roots; the snapshot covers every module inside.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._before: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._order: weakref.WeakKeyDictionary[nn.Module, list[str]] = weakref.WeakKeyDictionary()
        for model in models:
            for module in denoisers.unwrap(model).modules():
                self._before[module] = {name: module.__dict__[name] for name in LEFTOVERS if name in module.__dict__}
                self._order[module] = list(module._modules)

    def restore(self) -> None:
        """Restore or delete what the package left. What anyone else attached since then stays."""
        for module, before in self._before.items():
            for name in LEFTOVERS & module.__dict__.keys():
                if not is_leftover(module, name):
                    continue
                if name in before:
                    module.__dict__[name] = before[name]
                else:
                    del module.__dict__[name]
        for module, order in self._order.items():
            children = module._modules
            # cache-dit exchanges the blocks during each call, which moves them to the end.
            for name in sorted(children, key=[*order, *children].index):
                children[name] = children.pop(name)


def is_leftover(module: nn.Module, name: str) -> bool:
    """Whether an attribute of :data:`LEFTOVERS` on a module does only what the module's class does."""
    value = module.__dict__[name]
    if name == "_diffusers_hook":
        return not value.hooks
    if name != "forward":
        return True
    function = getattr(value, "__func__", getattr(value, "func", value))
    return function is type(module).forward or function.__module__.startswith("cache_dit")
