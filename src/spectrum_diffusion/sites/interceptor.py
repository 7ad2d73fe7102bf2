"""Interceptors around the calls of a model's modules.

An :class:`Interceptor` stands in ``module._compiled_call_impl``, the attribute that ``Module.__call__`` asks first.
It is thereby outside of everything else a call does: compiled code (``Module.compile``,
``compile_repeated_blocks``), forward hooks, diffusers' and accelerate's offload hooks. A call that it does not pass
on costs nothing and moves no weight; the module's ``forward`` and its hooks stay as they are; pickle and deepcopy
leave it behind.
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
    """Puts ``around`` in place of a module's call while it is set; ``call.proceed`` is the call as it would have been.

    Args:
        module: the module whose calls are intercepted.
        owner: kept alive while the interceptor stands, even when something overwrites the root's.
        around: answers the module's calls; None lets them pass.
    """

    def __init__(self, module: nn.Module, owner: Any, around: Around | None = None) -> None:
        # Weak, so that an enabled model that is dropped goes at once, without waiting for the garbage collector.
        self._module = weakref.ref(module)
        self._owner = owner
        self.around = around
        self._inner: Callable[..., Any] | None = None

    @property
    def module(self) -> nn.Module | None:
        return self._module()

    @property
    def compiled_inside(self) -> Callable[..., Any] | None:
        """The compiled call that the interceptor stands around, if the module was compiled."""
        return self._inner

    def attach(self) -> None:
        """Stand outermost, also when the module was compiled since; does nothing where it stands already."""
        if (module := self.module) is None:
            return
        current = module.__dict__.get(SLOT)
        if current is not self:
            self._inner = current
            module.__dict__[SLOT] = self

    def detach(self) -> None:
        """Leave the module exactly as found, or as compiled since."""
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
    """Whether the module is compiled, wrapped or in place."""
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
