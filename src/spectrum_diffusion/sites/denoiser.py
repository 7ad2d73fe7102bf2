"""A denoiser that handles are attached to: its interceptors, its sites, and the session that answers its calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..core.calls import Arguments
from ..core.site import Site
from ..errors import ConflictError, SpectrumError, warn
from . import make_site
from .interceptor import Interceptor
from .stores import FirstEvaluation

_attached: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Denoiser]] = weakref.WeakKeyDictionary()
"""Model → the denoiser attached to it. Both are weak, because the interceptor of a compiled root holds its model."""


Key = tuple[Any, ...]
"""Name and options of a site, which identify it on a denoiser."""


class Place(NamedTuple):
    """A site as it was resolved on a denoiser, and its interceptors."""

    key: Key
    site: Site
    interceptors: tuple[Interceptor, ...]


class Session(Protocol):
    """Answers the calls of a denoiser during a generation."""

    def call(self, denoiser: Denoiser, call: Arguments) -> Any:
        """Answer one call of the denoiser."""


class Denoiser:
    """The interceptors of a denoiser, shared by every handle on the model. Outside a generation, calls pass through.

    Args:
        model: the root module that the sampler calls.
        name: its name in summaries and messages, e.g. "transformer_2".
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.session: Session | None = None
        self._thread: int | None = None
        self.users: dict[Any, Key] = {}  # by handle
        self._root = Interceptor(model, self, self._around_root)
        self._inside: weakref.WeakKeyDictionary[nn.Module, Interceptor] = weakref.WeakKeyDictionary()
        self._places: dict[Key, Place] = {}
        self._first: FirstEvaluation | None = None  # of the generation under way
        self._warned = False

    @classmethod
    def on(cls, model: nn.Module) -> Denoiser | None:
        """The denoiser that is attached to the model, if any."""
        reference = _attached.get(model)
        return reference() if reference is not None else None

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Denoiser:
        """The denoiser that is attached to the model, or a new one."""
        return cls.on(model) or cls(model, name)

    @property
    def model(self) -> nn.Module | None:
        return self._root.module

    def site(self, method: Any) -> Site:
        """The site of a method, as it was last resolved; until an evaluation is complete, with a check around it."""
        site = self._places[method.site, method.site_options].site
        assert self.model is not None
        if self._first is None:
            self._first = FirstEvaluation(site, self.model, self.name)
        return site if self._first.done else self._first

    def resolve(self, method: Any) -> Place:
        """Find the method's site among the current modules. Nothing is attached to them before :meth:`attach`.

        Raises:
            UnsupportedModelError: the model has no such site.
        """
        inside: dict[int, Interceptor] = {}

        def interceptor(module: nn.Module) -> Interceptor:
            # All sites share the interceptor of a module. It lets calls pass until a site needs it.
            return inside.setdefault(id(module), self._inside.get(module) or Interceptor(module, self))

        key = (method.site, method.site_options)
        assert self.model is not None
        site = make_site(self.model, *key, interceptor)
        return Place(key, site, tuple(inside.values()))

    def attach(self, user: Any, place: Place) -> None:
        """Attach to the model for ``user`` (a handle), outside its compiled code."""
        self.users[user] = place.key
        self._places[place.key] = place
        assert self.model is not None
        _attached[self.model] = weakref.ref(self)
        self._root.attach()
        self._keep_needed()

    def detach(self, user: Any) -> None:
        """Detach from the model when its last user is gone."""
        self.users.pop(user, None)
        self._keep_needed()
        if not self.users:
            if self.model is not None:
                _attached.pop(self.model, None)
            self._root.detach()

    def _keep_needed(self) -> None:
        """Attach to the modules of the users' sites only: compiled code must not meet other interceptors."""
        self._places = {key: self._places[key] for key in self.users.values()}
        needed = [interceptor for place in self._places.values() for interceptor in place.interceptors]
        for interceptor in set(self._inside.values()).difference(needed):
            interceptor.detach()
        self._inside.clear()
        for interceptor in needed:
            if (module := interceptor.module) is not None:
                self._inside[module] = interceptor
                interceptor.attach()

    @contextmanager
    def serving(self, session: Session) -> Iterator[None]:
        """Let ``session`` answer the denoiser's calls."""
        if self.session is not None and self._thread == threading.get_ident():
            raise ConflictError(
                f"{self.name} is in use by another generation: during its call, a pipeline called another enabled "
                "pipeline that shares the denoiser. Keep one of the two enabled, and disable(…) the other"
            )
        if self.session is not None:
            raise ConflictError(
                f"{self.name} is in use by another generation: two pipelines share it and run at the same time. "
                "Give each thread a pipeline and a denoiser of its own, or run the pipelines one after the other"
            )
        self.session, self._thread = session, threading.get_ident()
        try:
            yield
        finally:
            self.session = self._first = None

    def _around_root(self, call: Arguments) -> Any:
        if self.session is None:
            self._warn_outside()
            return call.proceed(*call.args, **call.kwargs)
        if threading.get_ident() != self._thread:
            raise ConflictError(
                f"{self.name} was called from a second thread during a generation: give each thread a pipeline and a "
                "denoiser of its own"
            )
        if torch.is_grad_enabled():
            raise SpectrumError(
                f"{self.name} was called with gradients enabled, but forecasts are for sampling: call it under "
                "torch.no_grad() or torch.inference_mode(), or call disable(…) to train, or to guide by gradients "
                "(attend-and-excite)"
            )
        return self.session.call(self, call)

    def _warn_outside(self) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.name} was called outside a generation of an enabled pipeline and ran untouched: enable(…) the "
                "pipeline that calls it, or use `with handle.run(total_steps=T) as run` around your own loop"
            )
