"""The only file that touches a model's modules: interceptors around their calls.

An :class:`Interceptor` stands in ``module._compiled_call_impl``, the attribute that ``Module.__call__`` asks first.
It is thereby outside of everything else a call does: compiled code (``Module.compile``,
``compile_repeated_blocks``), forward hooks, diffusers' and accelerate's offload hooks. A call that it does not pass
on costs nothing and moves no weight; the module's ``forward`` and its hooks stay as they are; pickle and deepcopy
leave it behind.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from . import denoisers
from .errors import ConflictError, SpectrumError, warn
from .run import Arguments, Around, Site
from .sites import Where, make_site

SLOT = "_compiled_call_impl"


class Interceptor:
    """Puts ``around`` in place of a module's call while it is set; ``call.proceed`` is the call as it would have been.

    Args:
        module: the module whose calls are intercepted.
        owner: kept alive while the interceptor stands, even when the root's was overwritten.
        around: answers the module's calls; None lets them pass.
    """

    def __init__(self, module: nn.Module, owner: Denoiser | None, around: Around | None = None) -> None:
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

    def site(self, method: Where) -> Site:
        """The site at which the method reads and replaces features, made when first asked for."""
        key = (method.site, method.site_options)
        if key not in self._sites:
            assert self.model is not None
            self._sites[key] = make_site(self.model, method, self.interceptor)
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


CACHE_HOOKS = ("cache", "fbc_", "pyramid_attention_broadcast", "text_kv")
"""Beginnings or parts of the names under which diffusers' ``enable_cache`` registers its hooks."""


def refuse_training(model: nn.Module, name: str) -> None:
    """Raise where the model is in training mode."""
    if model.training:
        raise SpectrumError(f"{name} ({type(model).__name__}) is in training mode: call .eval() on it first")


def refuse_conflicts(model: nn.Module, name: str) -> None:
    """Raise where the model is cached or patched by something else."""
    if getattr(model, "is_cache_enabled", False):
        raise ConflictError(f"{name} has a cache of diffusers enabled: call .disable_cache() on it first")
    if hooks := sorted({hook for module in model.modules() for hook in _cache_hooks(module)}):
        raise ConflictError(f"{name} carries cache hooks of diffusers ({', '.join(hooks)}): remove them first")
    for marker, owner in FOREIGN_MARKERS.items():
        if marker in model.__dict__ or marker in type(model).__dict__:
            raise ConflictError(f"{name} is cached by {owner} (attribute {marker}): undo that first, or reload it")
    if patched := _patched_by(model):
        raise ConflictError(f"the forward of {name} was replaced by {patched}: undo that first, or reload the model")


FOREIGN_MARKERS = {
    "_is_cached": "cache-dit",
    "_cache_context_manager": "cache-dit",
    "enable_teacache": "TeaCache",
}


def _cache_hooks(module: nn.Module) -> list[str]:
    registry = module.__dict__.get("_diffusers_hook")
    return [hook for hook in getattr(registry, "hooks", ()) if any(part in hook for part in CACHE_HOOKS)]


def _patched_by(model: nn.Module) -> str:
    """Whose function stands in for the model's forward; offload hooks wrap the original and are no patch."""
    cls = type(model)
    own = cls.forward
    if own.__module__ not in {base.__module__ for base in cls.__mro__}:
        return f"{own.__module__}.{own.__qualname__}"
    instance = model.__dict__.get("forward")
    if instance is not None and not hasattr(instance, "__wrapped__"):
        return f"{getattr(instance, '__module__', '?')}.{getattr(instance, '__qualname__', instance)}"
    return ""


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


LEAVINGS = {
    *("forward", "_diffusers_hook", "_cache_config"),
    *("_is_patched", "_orig_forward", "_original_forward", "_is_cached", "_context_manager", "_context_names"),
}
"""What diffusers' caches and cache-dit may leave on a module when they are taken off."""
