"""A denoiser that handles stand on: its interceptors, its sites, and who answers its calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ..core.calls import Arguments
from ..core.site import Site
from ..errors import ConflictError, SpectrumError, warn
from . import make_site
from .interceptor import Interceptor

_standing: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Denoiser]] = weakref.WeakKeyDictionary()
"""Who stands on which model. Weak on both sides: a compiled root is held by the call that its interceptor keeps."""


class User(Protocol):
    """A handle: it uses the model for a target, a pipeline or the model itself."""

    @property
    def target(self) -> Any:
        """The target, or None where it was dropped."""


class Session(Protocol):
    """Who answers a denoiser's calls while a generation runs."""

    def call(self, denoiser: Denoiser, call: Arguments) -> Any:
        """Answer one call of the denoiser."""


class Denoiser:
    """A denoiser's interceptors, shared by every handle that uses the model; at rest, calls pass through.

    Args:
        model: the root module that the sampler calls.
        name: how summaries name it, e.g. "transformer_2".
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.session: Session | None = None
        self._thread: int | None = None
        self.users: set[User] = set()
        self._root = Interceptor(model, self, self._around_root)
        self._inside: weakref.WeakKeyDictionary[nn.Module, Interceptor] = weakref.WeakKeyDictionary()
        self._sites: dict[Any, Site] = {}
        self._warned = False

    @classmethod
    def on(cls, model: nn.Module) -> Denoiser | None:
        """The one that stands on the model already."""
        reference = _standing.get(model)
        return reference() if reference is not None else None

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Denoiser:
        """The one that stands on the model already, or a new one."""
        return cls.on(model) or cls(model, name)

    @property
    def model(self) -> nn.Module | None:
        return self._root.module

    def site(self, method: Any) -> Site:
        """The site at which the method reads and replaces features, made when first asked for."""
        key = (method.site, method.site_options)
        if key not in self._sites:
            assert self.model is not None
            self._sites[key] = make_site(self.model, *key, self.interceptor)
        return self._sites[key]

    def interceptor(self, module: nn.Module) -> Interceptor:
        """The interceptor of a module inside the model, one for all sites; it lets calls pass until a site needs it."""
        if module not in self._inside:
            self._inside[module] = Interceptor(module, self)
        return self._inside[module]

    def attach(self, user: User) -> None:
        """Stand on the model for ``user`` (a handle); again at each generation, in case it was compiled since."""
        self.users.add(user)
        assert self.model is not None
        _standing[self.model] = weakref.ref(self)
        for interceptor in (self._root, *self._inside.values()):
            interceptor.attach()

    def detach(self, user: User) -> None:
        """Leave the model when the last user has gone; one whose pipeline was dropped is gone too."""
        self.users = {other for other in self.users if other is not user and other.target is not None}
        if not self.users:
            if self.model is not None:
                _standing.pop(self.model, None)
            for interceptor in (self._root, *self._inside.values()):
                interceptor.detach()
            self._inside.clear()
            self._sites.clear()

    @contextmanager
    def serving(self, session: Session) -> Iterator[None]:
        """Let ``session`` answer the denoiser's calls."""
        if self.session is not None:
            raise ConflictError(
                f"{self.name} is in use by another generation: two pipelines share it and run at the same time. "
                "Give each thread a pipeline and a denoiser of its own, or run them one after the other"
            )
        self.session, self._thread = session, threading.get_ident()
        try:
            yield
        finally:
            self.session = None

    def _around_root(self, call: Arguments) -> Any:
        if self.session is None:
            self._warn_outside()
            return call.proceed(*call.args, **call.kwargs)
        if threading.get_ident() != self._thread:
            raise ConflictError(
                f"{self.name} was called from a second thread during a generation: give each thread "
                "a pipeline and a denoiser of its own"
            )
        if torch.is_grad_enabled():
            raise SpectrumError(
                f"{self.name} was called with gradients enabled: forecasts are for sampling. Call it under "
                "torch.no_grad() or torch.inference_mode(), or disable(…) to train"
            )
        return self.session.call(self, call)

    def _warn_outside(self) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.name} was called outside an enabled pipeline's generation and ran untouched: enable(…) the "
                "pipeline that calls it, or use `with handle.run(total_steps=T) as run` around your own loop"
            )
