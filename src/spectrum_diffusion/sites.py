"""Where in a denoiser features are read and replaced: the sites, and the passes that a call takes through them.

A site is a list of modules by role. During a call a *pass* answers the calls of these modules; the model's own forward
goes on around them, uncopied.

- ``block``: on a skipped step it answers with a stand-in of its recorded output's structure, shapes and dtypes.
- ``module``: its output is (a part of) the feature; on a skipped step it answers with the forecast.
- ``tail``: its input is the feature; on a skipped step it is given the forecast.
- ``first``: the first block of the main stack, at which some methods look before they decide.
- ``embedder``: makes the time embedding, at which they look where the model modulates by nothing else (Wan).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import denoisers
from .errors import SpectrumError, UnsupportedModelError
from .history import Feature, joined
from .run import Arguments, Intercepted, Judge, Site, answering
from .tokens import Tokens


class Where(Protocol):
    """What of a method says where its features lie."""

    @property
    def site(self) -> str:
        """A name of :data:`SITES`."""

    @property
    def site_options(self) -> tuple[Any, ...]:
        """What the site needs to know beside the model."""


class Output:
    """The denoiser's own output is the feature: for any denoiser; on a skipped step nothing of it runs.

    Args:
        residual: the feature is what the denoiser adds to its sample (EasyCache), not the output itself.
    """

    def __init__(self, *, residual: bool = False) -> None:
        self.name = "output"
        self._residual = residual

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        output = call.proceed(*call.args, **call.kwargs)
        leaves, spec = pytree.tree_flatten(output)
        feature = tuple(leaf for leaf in leaves if _is_floating(leaf))
        rest = [None if _is_floating(leaf) else leaf for leaf in leaves]
        if self._residual:
            feature = tuple(value - sample for value, sample in zip(feature, samples_of(call, feature), strict=True))
        return output, feature, (rest, spec)

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        rest, spec = structure
        values = iter(feature)
        if self._residual:
            values = (value + sample for value, sample in zip(values, samples_of(call), strict=True))
        return pytree.tree_unflatten([next(values) if leaf is None else leaf for leaf in rest], spec)

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        if (feature := judge(joined(samples_of(call)))) is not None:
            return self.forecast(call, feature, structure), None, structure
        return self.evaluate(call)


def samples_of(call: Arguments, outputs: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The noisy sample that a denoiser's call is given, (B, …), or the list of them that some models take.

    Raises:
        UnsupportedModelError: they are not of the shapes of the ``outputs``.
    """
    named = (call.named(name) for name in ("hidden_states", "sample", "x"))
    given = next((value for value in named if value is not None), None)
    if given is None:
        given = next(value for value in call.tensors.values() if value.is_floating_point())
    samples = list(given) if isinstance(given, (list, tuple)) else [given]
    of_outputs, of_samples = ([tuple(one.shape) for one in many] for many in (outputs or samples, samples))
    if of_outputs != of_samples:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} is given samples of the shapes {of_samples} but returns {of_outputs}, so "
            'their difference can\'t be kept: use spectrum, taylor or reuse, which can also be at site="output"'
        )
    return samples


class Spliced:
    """A site inside the denoiser, made of modules by role; embeddings, modulation and projections run as always.

    Args:
        name: how it is named in reasons.
        roles: role → modules, in the order in which they run.
        interceptor: gives the interceptor of a module.
        base: the feature is what is added to the image tokens "before" or "after" the first block; "" is no residual.
        signal: what a method that decides while running looks at.
    """

    def __init__(
        self,
        name: str,
        roles: dict[str, list[nn.Module]],
        interceptor: Callable[[nn.Module], Intercepted],
        *,
        base: str = "",
        signal: Signal | None = None,
    ) -> None:
        self.name, self._base, self._signal = name, base, signal
        self._places = [(role, interceptor(module)) for role, modules in roles.items() for module in modules]

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._passing(Recording(self._base)) as record:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.feature), record.structures

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self._passing(Skipping(feature, structure, self._base)):
            return call.proceed(*call.args, **call.kwargs)

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        assert self._signal is not None
        with self._passing(Deciding(self._signal, judge, structure, self._base)) as deciding:
            output = call.proceed(*call.args, **call.kwargs)
        through = deciding.through
        if isinstance(through, Recording):
            return output, tuple(through.feature), through.structures
        return output, None, structure

    @contextmanager
    def _passing(self, through: P) -> Iterator[P]:
        with answering([(place, partial(_answer, through, role)) for role, place in self._places]):
            yield through


class Observed(Spliced):
    """No site of ours: another package's cache decides, and an evaluation tells how much of the denoiser ran."""

    def __init__(self, layers: list[nn.Module], interceptor: Callable[[nn.Module], Intercepted]) -> None:
        super().__init__("observed", {"layer": layers}, interceptor)

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self._passing(Weighing()) as seen:
            output = call.proceed(*call.args, **call.kwargs)
        return output, (), seen.work


def _answer(through: Any, role: str, call: Arguments) -> Any:
    return getattr(through, role)(call)


class Based:
    """What recording and skipping share: the image tokens that a residual is taken from, and added to again.

    Args:
        kind: the tokens "before" or "after" the first block; "" is no residual.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._base: torch.Tensor | None = None

    def first(self, call: Arguments) -> Any:
        if self._kind == "" or self._base is not None:
            return self.block(call)
        if self._kind == "before":
            self._base = tokens_in(call).clone()  # the model may go on to write into it
            return self.block(call)
        output = call.proceed(*call.args, **call.kwargs)
        self._base = tokens_out(call, output).clone()
        return output

    def block(self, call: Arguments) -> Any:
        raise NotImplementedError

    def embedder(self, call: Arguments) -> Any:
        return call.proceed(*call.args, **call.kwargs)


class Recording(Based):
    """A pass through an evaluated denoiser: notes the outermost modules' output structures, and the feature."""

    def __init__(self, base: str = "") -> None:
        super().__init__(base)
        self.feature: list[torch.Tensor] = []
        self.structures: list[Any] = []
        self._inside = False

    def block(self, call: Arguments) -> Any:
        if self._inside:  # a block within a block is skipped with it
            return call.proceed(*call.args, **call.kwargs)
        output = self._proceed(call)
        leaves, spec = pytree.tree_flatten(output)
        self.structures.append(([_Meta.of(leaf) for leaf in leaves], spec))
        return output

    def module(self, call: Arguments) -> Any:
        if self._inside:
            return call.proceed(*call.args, **call.kwargs)
        output = self._proceed(call)
        leaves, spec = pytree.tree_flatten(output)
        self.feature += [leaf.clone() for leaf in leaves if _is_floating(leaf)]  # a block may go on to write into it
        self.structures.append(([None if _is_floating(leaf) else leaf for leaf in leaves], spec))
        return output

    def tail(self, call: Arguments) -> Any:
        value = call.first
        self.feature.append(value if self._base is None else _difference(value, self._base))
        return call.proceed(*call.args, **call.kwargs)

    def _proceed(self, call: Arguments) -> Any:
        self._inside = True
        try:
            return call.proceed(*call.args, **call.kwargs)
        finally:
            self._inside = False


class Skipping(Based):
    """A pass through a skipped denoiser: blocks answer stand-ins, modules and tails get the forecast."""

    def __init__(self, feature: Iterable[torch.Tensor], structures: list[Any], base: str = "") -> None:
        super().__init__(base)
        self._feature = iter(feature)
        self._structures = iter(structures)
        self._last: Any = None

    def block(self, call: Arguments) -> Any:
        leaves, spec = self._structure()
        return pytree.tree_unflatten([_stand_in(leaf, call) for leaf in leaves], spec)

    def module(self, call: Arguments) -> Any:
        leaves, spec = self._structure()
        return pytree.tree_unflatten([next(self._feature) if leaf is None else leaf for leaf in leaves], spec)

    def tail(self, call: Arguments) -> Any:
        value = next(self._feature)
        return call.proceed_with(value if self._base is None else self._base + value)

    def advance(self, count: int) -> Skipping:
        """Pass over the structures of ``count`` blocks that have run already."""
        for _ in range(count):
            self._structure()
        return self

    def _structure(self) -> Any:
        # A block that runs more often than when it was recorded answers as it did last (recycling).
        self._last = next(self._structures, self._last)
        return self._last


class Deciding:
    """A pass that records until the first block's signal is there, then goes on recording or skips."""

    def __init__(self, signal: Signal, judge: Judge, structures: Any, base: str) -> None:
        self._signal, self._judge, self._structures, self._kind = signal, judge, structures, base
        self.through: Recording | Skipping = Recording(base)
        self._embedding: torch.Tensor | None = None
        self._decided = False

    def embedder(self, call: Arguments) -> Any:
        output = call.proceed(*call.args, **call.kwargs)
        if isinstance(output, tuple):  # else it embeds a condition alone, which stays the same (ACE-Step)
            self._embedding = output[0]  # (B, D)
        return output

    def first(self, call: Arguments) -> Any:
        if self._decided:  # a first block that runs more than once in a call (recycling)
            return self.through.first(call)
        assert isinstance(self.through, Recording)
        self._decided, before = True, len(self.through.structures)
        value, answer = (self._embedding, None) if self._embedding is not None else self._signal(call)
        if (feature := self._judge(value)) is not None:
            self.through = Skipping(feature, self._structures, self._kind).advance(before)
        return self.through.first(call if answer is None else _answering(call, answer))

    def block(self, call: Arguments) -> Any:
        return self.through.block(call)

    def tail(self, call: Arguments) -> Any:
        return self.through.tail(call)


class Weighing:
    """A pass that lets everything run and adds up what ran: the multiplications of the layers with weights."""

    def __init__(self) -> None:
        self.work = 0

    def layer(self, call: Arguments) -> Any:
        layer: Any = call.module
        sample = call.args[0] if call.args else next(iter(call.kwargs.values()))
        self.work += sample.numel() * layer.weight.shape[0]
        return call.proceed(*call.args, **call.kwargs)


P = TypeVar("P", Recording, Skipping, Deciding, Weighing)

Signal = Callable[[Arguments], tuple[torch.Tensor, Any]]
"""From the call of the first block: the tensor to look at, and the block's output if that took running it."""


def _answering(call: Arguments, answer: Any) -> Arguments:
    """The call of a block that has run already."""
    return Arguments(lambda *args, **kwargs: answer, call.args, call.kwargs, call.module)


def modulated_input(call: Arguments) -> tuple[torch.Tensor, None]:
    """The image tokens as the first block's adaptive norm modulates them (TeaCache), (B, N, D).

    A block without such a norm, or whose norm takes more, is looked at by its image tokens as they come in.
    """
    norm, tokens, temb = getattr(call.module, "norm1", None), tokens_in(call), call.named("temb")
    if norm is None or temb is None or not _takes_embedding_alone(norm):
        return tokens, None
    value = norm(tokens, emb=temb)
    return (value[0] if isinstance(value, tuple) else value), None


def _takes_embedding_alone(norm: nn.Module) -> bool:
    _, *others = inspect.signature(norm.forward).parameters.values()
    needed = {parameter.name for parameter in others if parameter.default is parameter.empty}
    # The modulation of a pruned norm (Chroma) is a slice of the embedding that only its block knows.
    return needed <= {"emb"} <= {parameter.name for parameter in others} and "Pruned" not in type(norm).__name__


def first_residual(call: Arguments) -> tuple[torch.Tensor, Any]:
    """What the first block adds to the image tokens (first-block cache), (B, N, D); it takes running the block."""
    before = tokens_in(call).clone()
    output = call.proceed(*call.args, **call.kwargs)
    return tokens_out(call, output) - before, output


def tokens_in(call: Arguments) -> torch.Tensor:
    """The image tokens that a block is given, (B, N, D)."""
    named = call.named("hidden_states")
    return named if isinstance(named, torch.Tensor) else call.first


def tokens_out(call: Arguments, output: Any) -> torch.Tensor:
    """The image tokens that a block returns: the output of the shape that it was given."""
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    fitting = [tensor for tensor in tensors if tensor.shape == tokens_in(call).shape]
    if not fitting:
        raise UnsupportedModelError(
            f"{type(call.module).__name__} returns its tokens in another shape than it takes them, so what "
            "it adds can't be kept: use a method that needs no residual, such as spectrum, taylor or reuse"
        )
    return fitting[denoisers.image_place(call.module)] if len(fitting) == 2 == len(tensors) else fitting[0]


def _difference(value: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    if value.shape != base.shape:
        raise UnsupportedModelError(
            f"the tokens enter the final norm as {tuple(value.shape)} but the first block as {tuple(base.shape)}, so "
            "their difference can't be kept: use a method that needs no residual, such as spectrum, taylor or reuse"
        )
    return value - base


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


Make = Callable[[nn.Module, Where, Callable[[nn.Module], Intercepted]], Site]


def _last_block(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    blocks, tails = denoisers.resolve(model, denoisers.last_block_row(model))
    return Spliced("last_block", {"block": blocks, "tail": tails}, interceptor)


def _modules(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    features, skipped = denoisers.modules_of(model)
    return Spliced("module", {"module": features, "block": skipped}, interceptor)


def _deep(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    last, before = denoisers.deep_modules(model, *where.site_options)
    return Spliced("deep", {"module": [last], "block": before}, interceptor)


def _residual(
    base: str, signal: Signal, model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]
) -> Site:
    first = denoisers.first_block(model)
    blocks, tails = denoisers.resolve(model, denoisers.last_block_row(model))
    rest = [block for block in blocks if block is not first]
    roles = {"first": [first], "block": rest, "tail": tails}
    if signal is modulated_input:
        roles["embedder"] = denoisers.time_embedders(model)
    return Spliced("residual", roles, interceptor, base=base, signal=signal)


SITES: dict[str, Make] = {
    "last_block": _last_block,
    "output": lambda *_: Output(),
    "module": _modules,
    "residual": partial(_residual, "before", modulated_input),
    "first_block": partial(_residual, "after", first_residual),
    "watched": partial(_residual, "", modulated_input),
    "deep": _deep,
    "tokens": lambda model, where, interceptor: Tokens(model, where.site_options, interceptor),
    "output_residual": lambda *_: Output(residual=True),
    "observed": lambda model, _, interceptor: Observed(denoisers.layers_of(model), interceptor),
}
"""The sites by name."""


def make_site(model: nn.Module, where: Where, interceptor: Callable[[nn.Module], Intercepted]) -> Site:
    """The site that a method asks for, on a model.

    Raises:
        UnsupportedModelError: the model has no such site.
    """
    if where.site not in SITES:
        raise SpectrumError(f"site={where.site!r} is unknown: choose one of {', '.join(SITES)}")
    return SITES[where.site](model, where, interceptor)
