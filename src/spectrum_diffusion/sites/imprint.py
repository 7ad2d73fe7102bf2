"""The state of a denoiser's modules at a moment, to tell cheaply whether anything was exchanged since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

WATCHED = (
    *("_compiled_call_impl", "forward", "processor", "_is_cached", "_cache_context_manager", "enable_teacache"),
    *("_parallel_config", "_is_parallelized"),
)
"""Attributes of a module's own that compiling, caching, patching and parallelism set."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

Ref = Callable[[], Any]


class Imprint:
    """The modules of a denoiser, and what is attached to each of them. It keeps nothing alive.

    Adapters, quantizers, wrappers and compilation exchange modules or set an attribute of :data:`WATCHED`. Weights that
    change in place do not change the imprint, because no site depends on them.

    Args:
        model: the root module that the sampler calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._parts = list(_parts(model))

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is that of the imprint and still consists of the same modules."""
        if self._model() is not model:
            return False
        parts = list(_parts(model))
        return len(parts) == len(self._parts) and all(map(_same, self._parts, parts))


def _parts(model: nn.Module) -> Iterator[Ref | str | bool]:
    """References and names, ordered by the names of the children only, because cache-dit reorders them."""
    yield model.training
    yield bool(getattr(model, "is_cache_enabled", False))
    yield _reference(type(model).forward)
    seen: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        yield _reference(module)
        if module in seen:
            continue
        seen.add(module)
        own = module.__dict__
        yield from (_reference(own[name]) for name in WATCHED if name in own)
        yield from (_reference(hook) for name in HOOKS for hook in own.get(name, {}).values())
        if (registry := own.get("_diffusers_hook")) is not None:
            yield from registry.hooks
        for name in sorted(own["_modules"]):
            if (child := own["_modules"][name]) is not None:
                yield name
                waiting.append(child)


def _reference(value: Any) -> Ref | str:
    """A weak reference, because the address of a freed object may be reused; type and id if there can be none."""
    try:
        return weakref.ref(value)
    except TypeError:
        return f"{type(value)} {id(value)}"


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, weakref.ref) and isinstance(now, weakref.ref):
        return before() is now() is not None
    return bool(before == now)
