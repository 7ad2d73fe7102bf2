"""What another package's cache leaves behind on a model, and its removal."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..sites import denoisers

LEAVINGS = {
    *("forward", "_diffusers_hook", "_cache_config"),
    *("_is_patched", "_orig_forward", "_original_forward", "_is_cached", "_context_manager", "_context_names"),
}
"""What diffusers' caches and cache-dit may leave on a module when they are taken off."""


class Snapshot:
    """What modules held of the attributes that other packages' caches write, to put back what they leave behind.

    Args:
        models: the roots; every module inside is covered.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._before: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._order: weakref.WeakKeyDictionary[nn.Module, list[str]] = weakref.WeakKeyDictionary()
        for model in models:
            for module in denoisers.unwrap(model).modules():
                self._before[module] = {name: module.__dict__[name] for name in LEAVINGS if name in module.__dict__}
                self._order[module] = list(module._modules)

    def restore(self) -> None:
        """Delete or put back what the package left; what anybody else has put there since stays."""
        for module, before in self._before.items():
            for name in LEAVINGS & module.__dict__.keys():
                if not _is_leaving(module, name):
                    continue
                if name in before:
                    module.__dict__[name] = before[name]
                else:
                    del module.__dict__[name]
        for module, order in self._order.items():
            children = module._modules
            # cache-dit puts other blocks in their place for each call, and thereby moves them to the end.
            for name in sorted(children, key=[*order, *children].index):
                children[name] = children.pop(name)


def _is_leaving(module: nn.Module, name: str) -> bool:
    value = module.__dict__[name]
    if name == "_diffusers_hook":
        return not value.hooks
    if name != "forward":
        return True
    function = getattr(value, "__func__", getattr(value, "func", value))
    return function is type(module).forward or function.__module__.startswith("cache_dit")
