"""Generations that fail on purpose, and what they may leave behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from torch import nn

from spectrum_diffusion.core.history import History


class AbortError(Exception):
    """What the tests raise in the middle of a generation."""


def kept_features() -> list[History]:
    """Histories that hold tensors, without waiting for the garbage collector."""
    return [thing for thing in gc.get_objects() if isinstance(thing, History) and len(thing)]


def state_of(pipe: Any) -> list[tuple[str, dict[str, int]]]:
    """Every attribute of every module, by identity; the children and hooks by what is in them."""
    containers = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
    state = []
    for component, model in modules_of(pipe).items():
        for path, module in model.named_modules():
            attributes = {key: id(value) for key, value in vars(module).items()}
            attributes.update({key: len(getattr(module, key)) for key in containers})
            state.append((f"{component}.{path}", attributes))
    return state


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    return {name: value for name, value in pipe.components.items() if isinstance(value, nn.Module)}


def fail_in_denoiser(pipe: Any, entry: Any, step: int) -> Callable[[], None]:
    """Raise inside the tail, which runs on evaluated and on skipped steps, at a step; returns the undo.

    Steps are counted by the denoiser's calls; the guidance branches of a step are calls of their own.
    """
    calls = [0]

    def fail(*_: Any) -> None:
        if calls[0] // entry.branches == step:
            raise AbortError

    def count(*_: Any) -> None:
        calls[0] += 1

    hooks = []
    for name in entry.denoisers:
        model = getattr(pipe, name)
        hooks.append(model.get_submodule(entry.tail).register_forward_pre_hook(fail))
        hooks.append(model.register_forward_hook(count))

    def undo() -> None:
        for hook in hooks:
            hook.remove()

    return undo
