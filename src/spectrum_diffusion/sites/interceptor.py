"""Interceptors around the calls of a model's modules.

An :class:`Interceptor` occupies ``module._compiled_call_impl``, the attribute that ``Module.__call__`` reads first. It
is therefore outside everything else that a call does: compiled code (``Module.compile``, ``compile_repeated_blocks``),
forward hooks, and the offload hooks of diffusers and accelerate. A call that it answers itself costs nothing and moves
no weights. The module's ``forward`` and its hooks stay as they are, and copies and pickles leave the interceptor out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core.calls import Arguments
from . import denoisers

SLOT = "_compiled_call_impl"

Around = Callable[[Arguments], Any]


class Interceptor:
    """Answers the calls of a module with ``around`` while it is set; ``call.proceed`` is the module's own call.

    Args:
        module: the module whose calls are intercepted.
        owner: kept alive while the interceptor is attached.
        around: answers the module's calls; None lets them pass.
    """

    def __init__(self, module: nn.Module, owner: Any, around: Around | None = None) -> None:
        # Weak, so that an enabled model is freed as soon as it is dropped, without waiting for the garbage collector.
        self._module = weakref.ref(module)
        self._owner = owner
        self.around = around
        self._inner: Callable[..., Any] | None = None

    @property
    def module(self) -> nn.Module | None:
        return self._module()

    @property
    def compiled_inside(self) -> Callable[..., Any] | None:
        """The compiled call inside the interceptor, if the module was compiled."""
        return self._inner

    def attach(self) -> None:
        """Attach outermost, even if the module was compiled since; harmless if attached already."""
        if (module := self.module) is None:
            return
        current = module.__dict__.get(SLOT)
        if current is not self:
            self._inner = current
            module.__dict__[SLOT] = self

    def detach(self) -> None:
        """Leave the module exactly as it was, or as it was compiled since."""
        module = self.module
        if module is None or module.__dict__.get(SLOT) is not self:
            return
        if self._inner is None:
            del module.__dict__[SLOT]
        else:
            module.__dict__[SLOT] = self._inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        assert module is not None  # it is being called
        proceed = self._inner or module._call_impl
        if self.around is None:
            return proceed(*args, **kwargs)
        return self.around(Arguments(proceed, args, kwargs, module))


def compiled(module: nn.Module) -> bool:
    """Whether the module is compiled, in a wrapper or in place."""
    inner = denoisers.unwrap(module)
    slot = inner.__dict__.get(SLOT)
    return inner is not module or getattr(slot, "compiled_inside", slot) is not None


@contextmanager
def answering(places: Sequence[tuple[Interceptor, Around]]) -> Iterator[None]:
    """Let each function answer the calls of its module while the block lasts."""
    for place, around in places:
        place.around = around
    try:
        yield
    finally:
        for place, _ in places:
            place.around = None
