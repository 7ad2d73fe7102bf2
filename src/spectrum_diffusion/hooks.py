"""The only file that touches a model's modules: interceptors around module calls, and the two sites.

An :class:`Interceptor` stands in ``module._compiled_call_impl``, the attribute that ``Module.__call__`` asks first.
It is thereby outside of everything else a call does: compiled code (``Module.compile``,
``compile_repeated_blocks``), forward hooks, diffusers' and accelerate's offload hooks. A call that it does not pass
on costs nothing and moves no weight; the module's ``forward`` and its hooks stay as they are; pickle and deepcopy
leave it behind.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import denoisers
from .denoisers import DenoiserRow
from .errors import ConflictError, SpectrumError, UnsupportedModelError, warn
from .history import Feature
from .run import Arguments

SLOT = "_compiled_call_impl"
Around = Callable[[Arguments], Any]


class Interceptor:
    """Puts ``around`` in place of a module's call; ``call.proceed`` is the call as it would have been."""

    def __init__(self, module: nn.Module, around: Around) -> None:
        # Weak, so that an enabled model that is dropped goes at once, without waiting for the garbage collector.
        self._module = weakref.ref(module)
        self._around = around
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
        return self._around(Arguments(self._inner or module._call_impl, args, kwargs, module.forward))


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
        self._root = Interceptor(model, self._around_root)
        self._last_block: LastBlock | None = None
        self._output = Output()
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

    def site(self, name: str) -> LastBlock | Output:
        """The site of that name, made when first asked for."""
        if name == "output":
            return self._output
        if self._last_block is None:
            assert self.model is not None
            self._last_block = LastBlock(self.model, self)
        return self._last_block

    def attach(self, user: User) -> None:
        """Stand on the model for ``user`` (a handle); again at each generation, in case it was compiled since."""
        self.users.add(user)
        assert self.model is not None
        _standing[self.model] = weakref.ref(self)
        self._root.attach()
        if self._last_block is not None:
            self._last_block.attach()

    def detach(self, user: User) -> None:
        """Leave the model when the last user has gone; one whose pipeline was dropped is gone too."""
        self.users = {other for other in self.users if other is not user and other.target is not None}
        if not self.users:
            if self.model is not None:
                _standing.pop(self.model, None)
            self._root.detach()
            if self._last_block is not None:
                self._last_block.detach()
                self._last_block = None

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


class Output:
    """The denoiser's own output is the feature: for any denoiser; on a skipped step nothing of it runs."""

    name = "output"

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        output = call.proceed(*call.args, **call.kwargs)
        leaves, spec = pytree.tree_flatten(output)
        feature = tuple(leaf for leaf in leaves if _is_floating(leaf))
        rest = [None if _is_floating(leaf) else leaf for leaf in leaves]
        return output, feature, (rest, spec)

    def forecast(self, call: Arguments, feature: Feature, structure: Any) -> Any:
        rest, spec = structure
        values = iter(feature)
        return pytree.tree_unflatten([next(values) if leaf is None else leaf for leaf in rest], spec)

    def audit(self, call: Arguments, feature: Feature) -> tuple[Any, Feature]:
        _, true, structure = self.evaluate(call)
        return self.forecast(call, feature, structure), true


class LastBlock:
    """The tail's input is the feature: the tokens after the last block, before the final norm and projection.

    On a skipped step each block answers with a stand-in of its recorded output's structure, shapes and dtypes, and the
    tail's input is replaced by the forecast; embeddings, modulation, final norm and projection run as always.
    """

    name = "last_block"

    def __init__(self, model: nn.Module, owner: Denoiser) -> None:
        self._owner = owner  # lives while a block is intercepted, even when the root's interceptor was overwritten
        blocks, tails = denoisers.resolve(model, last_block_row(model))
        self._interceptors = [Interceptor(block, self._around_block) for block in blocks]
        self._interceptors += [Interceptor(tail, self._around_tail) for tail in tails]
        self._pass: Recording | Skipping | Auditing | None = None

    def attach(self) -> None:
        for interceptor in self._interceptors:
            interceptor.attach()

    def detach(self) -> None:
        for interceptor in self._interceptors:
            interceptor.detach()

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._passing(Recording()) as record:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.feature), record.structures

    def forecast(self, call: Arguments, feature: Feature, structure: Any) -> Any:
        with self._passing(Skipping(feature, structure)):
            return call.proceed(*call.args, **call.kwargs)

    def audit(self, call: Arguments, feature: Feature) -> tuple[Any, Feature]:
        with self._passing(Auditing(feature)) as audit:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(audit.true)

    @contextmanager
    def _passing(self, through: P) -> Iterator[P]:
        self._pass = through
        try:
            yield through
        finally:
            self._pass = None

    def _around_block(self, call: Arguments) -> Any:
        if self._pass is None:
            return call.proceed(*call.args, **call.kwargs)
        return self._pass.block(call)

    def _around_tail(self, call: Arguments) -> Any:
        if self._pass is None:
            return call.proceed(*call.args, **call.kwargs)
        return self._pass.tail(call)


class Recording:
    """A pass through an evaluated denoiser: notes each outermost block's output structure and the tails' inputs."""

    def __init__(self) -> None:
        self.feature: list[torch.Tensor] = []
        self.structures: list[Any] = []
        self._inside = False

    def block(self, call: Arguments) -> Any:
        if self._inside:  # a block within a block is skipped with it
            return call.proceed(*call.args, **call.kwargs)
        self._inside = True
        output = call.proceed(*call.args, **call.kwargs)
        self._inside = False
        leaves, spec = pytree.tree_flatten(output)
        self.structures.append(([_Meta.of(leaf) for leaf in leaves], spec))
        return output

    def tail(self, call: Arguments) -> Any:
        self.feature.append(_tail_input(call))
        return call.proceed(*call.args, **call.kwargs)


class Skipping:
    """A pass through a skipped denoiser: blocks answer stand-ins, tails get the forecast."""

    def __init__(self, feature: Feature, structures: list[Any]) -> None:
        self._feature = iter(feature)
        self._structures = iter(structures)
        self._last: Any = None

    def block(self, call: Arguments) -> Any:
        # A block that runs more often than when it was recorded answers as it did last (recycling).
        self._last = next(self._structures, self._last)
        leaves, spec = self._last
        return pytree.tree_unflatten([_stand_in(leaf, call) for leaf in leaves], spec)

    def tail(self, call: Arguments) -> Any:
        return _with_tail_input(call, next(self._feature))


class Auditing:
    """A pass that runs everything, and swaps the tails' inputs for the forecast after noting them."""

    def __init__(self, feature: Feature) -> None:
        self.true: list[torch.Tensor] = []
        self._feature = iter(feature)

    def block(self, call: Arguments) -> Any:
        return call.proceed(*call.args, **call.kwargs)

    def tail(self, call: Arguments) -> Any:
        self.true.append(_tail_input(call).clone())
        return _with_tail_input(call, next(self._feature))


P = TypeVar("P", Recording, Skipping, Auditing)


class _Meta(NamedTuple):
    """What a stand-in for a tensor needs to have."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, leaf: Any) -> Any:
        return cls(leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else leaf


def _stand_in(leaf: Any, call: Arguments) -> Any:
    if not isinstance(leaf, _Meta):
        return leaf
    for tensor in call.tensors.values():  # an input of the same kind costs no memory
        if _Meta.of(tensor) == leaf:
            return tensor
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _tail_input(call: Arguments) -> torch.Tensor:
    return next(iter(call.tensors.values()))


def _with_tail_input(call: Arguments, feature: torch.Tensor) -> Any:
    """Proceed with the first tensor argument replaced."""
    for place, value in enumerate(call.args):
        if isinstance(value, torch.Tensor):
            return call.proceed(*call.args[:place], feature, *call.args[place + 1 :], **call.kwargs)
    name = next(name for name, value in call.kwargs.items() if isinstance(value, torch.Tensor))
    return call.proceed(*call.args, **{**call.kwargs, name: feature})


def last_block_row(model: nn.Module) -> DenoiserRow:
    """The model's row of the table, if it has a last block; else an error that names the ways out."""
    row, cls = denoisers.row_for(model), type(model).__name__
    if row is None:
        raise UnsupportedModelError(
            f'{cls} is in no row of the table of denoisers, so its last block is not known: use site="output", which '
            f"works for any denoiser, or add a row with register_denoiser({cls}, blocks=(…), tail=(…))"
        )
    if not row.blocks:
        raise UnsupportedModelError(f'{cls} has no last-block site ({row.reason}): use site="output"')
    return row


CACHE_HOOKS = ("cache", "fbc_", "pyramid_attention_broadcast", "text_kv")
"""Beginnings or parts of the names under which diffusers' ``enable_cache`` registers its hooks."""


def refuse_conflicts(model: nn.Module, name: str) -> None:
    """Raise where the model can't be accelerated now: in training mode, or cached or patched by something else."""
    if model.training:
        raise SpectrumError(f"{name} ({type(model).__name__}) is in training mode: call .eval() on it first")
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
