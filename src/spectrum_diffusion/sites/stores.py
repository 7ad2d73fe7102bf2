"""Refusal of models from which somebody else reads what a skipped step does not compute.

Some pipelines let attention processors or forward hooks store attention maps or activations, and read them after each
step (LEdits++, self-attention guidance). On a skipped step nothing is stored, and they would fail or read old values.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.calls import Arguments, version_of
from ..core.history import Feature
from ..core.site import Choose, Site
from ..errors import UnsupportedModelError

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
DEPTH = 6
"""How many objects deep a store is looked for: processor → store → dict → list → tensor, and one to spare."""
OPAQUE = ("torch", "accelerate", "diffusers.models", "peft", __package__.partition(".")[0])
"""Packages whose objects hold tensors for themselves, such as gathered weights."""


class FirstEvaluation(Site):
    """A site during the first evaluation of a generation, which shows whether anything stores what is skipped later.

    Args:
        site: the site of the method.
        model: the denoiser.
        name: the denoiser's name, for the message.
    """

    def __init__(self, site: Site, model: nn.Module, name: str) -> None:
        self._site, self._denoiser = site, name
        self.copies = site.copies
        self._skipped = site.skipped(model)
        self.done = not self._skipped

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._site.name

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._checking():
            return self._site.evaluate(call)

    def decide(self, call: Arguments, choose: Choose, structure: Any) -> tuple[Any, Feature | None, Any]:
        with self._checking():
            return self._site.decide(call, choose, structure)

    @contextmanager
    def _checking(self) -> Iterator[None]:
        stores = Stores(self._skipped)
        yield
        self.done, self._skipped = True, []
        if writer := stores.writer():
            raise UnsupportedModelError(
                f"{writer} in {self._denoiser} stores activations at each call, and a skipped step would not store "
                "any: use fewer-steps, which evaluates every step of a shorter run, or disable(…) the pipeline"
            )


class Stores:
    """The tensors that attention processors and forward hooks of modules hold.

    Args:
        modules: the modules that are skipped, with everything inside them.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        inside = {inner: None for module in modules for inner in module.modules()}
        self._holders = [holder for module in inside for holder in _holders(module)]
        self._before = [_versions(holder) for _, holder in self._holders]

    def writer(self) -> str:
        """Which of them has stored something since; "" is none."""
        for (name, holder), before in zip(self._holders, self._before, strict=True):
            if _versions(holder).keys() - before.keys():
                return name
        return ""


def _holders(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What may store, with its name for the message."""
    if (processor := getattr(module, "processor", None)) is not None:
        yield f"the attention processor {type(processor).__name__}", processor
    for hook in (hook for hooks in HOOKS for hook in module.__dict__[hooks].values()):
        name = getattr(hook, "__qualname__", type(hook).__name__)
        yield f"the forward hook {name} of {type(module).__name__}", getattr(hook, "__self__", hook)


def _versions(holder: Any) -> dict[tuple[int, int], Any]:
    """The tensors and arrays that an object reaches, by identity and version; held, so that no identity is reused."""
    tensors: dict[tuple[int, int], Any] = {}
    seen: set[int] = set()
    waiting = deque((part, DEPTH) for part in _attributes(holder))
    while waiting:
        thing, depth = waiting.popleft()
        if isinstance(thing, (torch.Tensor, np.ndarray)):
            tensors[id(thing), _version(thing)] = thing
        elif depth and id(thing) not in seen:
            seen.add(id(thing))
            waiting.extend((part, depth - 1) for part in _parts(thing))
    return tensors


def _version(thing: torch.Tensor | np.ndarray) -> int:
    return version_of(thing) if isinstance(thing, torch.Tensor) else 0


def _attributes(holder: Any) -> Iterable[Any]:
    if isinstance(holder, nn.Module):  # such as the processor of an IP-Adapter, which has weights
        return [value for name, value in vars(holder).items() if name not in ("_parameters", "_buffers", "_modules")]
    return _parts(holder)


def _parts(thing: Any) -> Iterable[Any]:
    """What an object holds directly."""
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple, set, deque)):
        return thing
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, types.MethodType):
        return (thing.__self__,)
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if cell != _EMPTY]
    if isinstance(thing, (nn.Module, type, types.ModuleType)) or type(thing).__module__.startswith(OPAQUE):
        return ()
    return getattr(thing, "__dict__", {}).values()


_EMPTY = types.CellType()
