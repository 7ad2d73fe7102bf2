"""The site of token-wise caching (ToCa): it keeps attention, and runs the feed-forward on a few tokens only.

An evaluated call keeps each attention output, each feed-forward output (of a fused block: its output before the gate),
the attention that each token received, and the number of steps since its last computation. A partial call returns the
kept attention, runs the feed-forward on the tokens with the highest scores, and updates the kept outputs in place.
Norms, modulation and gates run as always. A feed-forward treats each token by itself, so running it on the chosen rows
of its input is the published computation. The output projection of the attention is kept too; the public code computes
it again from the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..core.calls import Arguments
from ..core.history import Feature
from ..core.site import Site
from ..errors import UnsupportedModelError
from . import denoisers
from .interceptor import Interceptor, answering
from .row import DenoiserRow, TokenRoles

STALENESS = 0.25
"""Weight of a token's staleness, in intervals, relative to the attention that it received."""
SHARES = {"double": 0.4, "single": 1.6}
"""Factor of the ratio, by kind of block; layer l multiplies it by (1.5 − l/27)."""
ALL = "all"
"""The kind of the tokens in a block that fuses both streams."""
LAYERS = 27
CHUNK = 1 << 25
"""Attention weights computed at a time, 128 MiB, so that the map of all pairs is never held."""


class Part(NamedTuple):
    """A module that the site intercepts.

    Attributes:
        block: number of its block.
        name: its name in the block, under which its outputs are kept.
        answer: name of the method of a pass that answers its calls.
        kind: kind of the tokens of a feed-forward; for an attention, the tokens that it scores, "" for none.
        module: its interceptor.
    """

    block: int
    name: str
    answer: str
    kind: str
    module: Interceptor


@dataclass
class Block:
    """What is kept of one block.

    Attributes:
        share: share of its tokens that a partial call computes.
        order: kinds of tokens in its attention; a block that fuses both streams has "all".
        places: name → index of the tensor in the feature.
        attention: name of an attention → whether it returned a tuple, which members are tensors, and their names.
    """

    share: float
    order: tuple[str, ...]
    places: dict[str, int] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)


def share_of(layer: int, kind: str, ratio: float) -> float:
    """Share of the tokens that a layer of a stack computes on a partial step (ToCa's public code for FLUX)."""
    return min(1.0, max(0.0, ratio * (1.5 - layer / LAYERS) * SHARES[kind]))


class Tokens(Site):
    """The feature is the output of every attention and feed-forward module, and a score for each token.

    Options: the ratio of computed tokens, and the interval in which staleness is counted.
    """

    name = "tokens"
    keeps = "the output of every attention and feed-forward module, and a score for each token"
    inside_blocks = True

    def __init__(
        self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
    ) -> None:
        ratio, self._interval = options
        self._blocks: list[tuple[float, tuple[str, ...]]] = []
        self._parts: list[Part] = []
        row = denoisers.last_block_row(model)
        layers = dict.fromkeys(SHARES, 0)
        for block in denoisers.main_blocks(model):
            roles, fused = _roles_of(row, block, model), row.is_fused(block)
            kind = "single" if fused else "double"
            place, share = len(self._blocks), share_of(layers[kind], kind, ratio)
            layers[kind] += 1
            parts = _fused_parts(row.fused) if fused else _parts_of(roles)
            children = dict(block.named_children())
            for name, answer, tokens in parts:
                if children.get(name) is not None:
                    self._parts.append(Part(place, name, answer, tokens, interceptor(children[name])))
            self._blocks.append((share, (ALL,) if fused else roles.order))

    def skipped(self, model: nn.Module) -> list[nn.Module]:
        return [part.module.module for part in self._parts if part.module.module is not None]

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        blocks = [Block(share, order) for share, order in self._blocks]
        record = TokenRecording(blocks)
        with self._passing(record):
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.kept), blocks

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self._passing(Computing(list(feature), structure, self._interval)):
            return call.proceed(*call.args, **call.kwargs)

    def _passing(self, pass_: TokenRecording | Computing) -> AbstractContextManager[None]:
        return answering([(part.module, partial(getattr(pass_, part.answer), part)) for part in self._parts])


def _roles_of(row: DenoiserRow, block: nn.Module, model: nn.Module) -> TokenRoles:
    roles = row.token_roles(block)
    if roles is None:
        raise UnsupportedModelError(
            f"toca cannot run on {type(denoisers.unwrap(model)).__name__}, because the order of the tokens in its "
            f"blocks ({type(block).__name__}) is unknown: use FluxTransformer2DModel, SD3Transformer2DModel, "
            "WanTransformer3DModel or HunyuanVideoTransformer3DModel, or fora or taylorseer, which work with any "
            "denoiser, or pass the order to register_denoiser(…, tokens=TokenRoles(…))"
        )
    return roles


def _parts_of(roles: TokenRoles) -> list[tuple[str, str, str]]:
    """Name, answer and kind of each part of a block with one feed-forward for each kind of token."""
    scored = [(name, "attention", ALL) for name in roles.attention]
    cross = [(name, "attention", "") for name in roles.cross_attention]
    return [*scored, *cross, *((name, "feed_forward", kind) for name, kind in roles.feed_forward.items())]


def _fused_parts(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, answer and kind of each part of a fused block: the attention, the first projection and the last."""
    return [(names[0], "rows_of_attention", ALL), (names[1], "inner", ALL), (names[-1], "fused", ALL)]


class TokenRecording:
    """A pass through an evaluated denoiser, which keeps outputs and the attention that tokens receive."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self.kept: list[torch.Tensor] = []

    def attention(self, part: Part, call: Arguments) -> Any:
        block = self.blocks[part.block]
        with AttentionReceived() if part.kind else nullcontext() as watch:
            output = call.proceed(*call.args, **call.kwargs)
        outputs = output if isinstance(output, tuple) else (output,)
        names = [
            self._keep(block, f"{part.name}.{i}", tensor) for i, tensor in enumerate(outputs) if tensor is not None
        ]
        block.attention[part.name] = (isinstance(output, tuple), [tensor is not None for tensor in outputs], names)
        if watch is not None:
            counts = [tensor.shape[1] for tensor in outputs if tensor is not None]
            self._keep_scores(block, watch.result(call.module), counts)
        return output

    rows_of_attention = attention

    def feed_forward(self, part: Part, call: Arguments) -> Any:
        if f"output.{part.kind}" in self.blocks[part.block].places:
            raise UnsupportedModelError(
                f"toca chooses among all tokens, but {part.name} of block {part.block} takes them in chunks: call "
                "disable_forward_chunking() on the model"
            )
        output = call.proceed(*call.args, **call.kwargs)
        self._keep_stale(self.blocks[part.block], part.kind, output)
        return output

    def inner(self, part: Part, call: Arguments) -> Any:
        return call.proceed(*call.args, **call.kwargs)

    fused = feed_forward

    def _keep(self, block: Block, name: str, tensor: torch.Tensor) -> str:
        block.places[name] = len(self.kept)
        self.kept.append(tensor)
        return name

    def _keep_stale(self, block: Block, kind: str, output: torch.Tensor) -> None:
        self._keep(block, f"output.{kind}", output)
        self._keep(block, f"stale.{kind}", output.new_zeros(output.shape[:2], dtype=torch.int32))

    def _keep_scores(self, block: Block, received: torch.Tensor, counts: Sequence[int]) -> None:
        """Split the attention received, (B, N), by kind of token; the outputs tell how many tokens each kind has."""
        if block.order == (ALL,):
            self._keep(block, f"score.{ALL}", functional.normalize(received, dim=-1))
            return
        number = dict(zip(("image", "text"), counts, strict=False))  # attention returns (image, text)
        present = [kind for kind in block.order if kind in number]
        parts = received.split([number[kind] for kind in present], dim=1) if len(present) > 1 else (received,)
        for kind, part in zip(present, parts, strict=True):
            self._keep(block, f"score.{kind}", functional.normalize(part[:, : number[kind]], dim=-1))


class Computing:
    """A pass through a partial step: the feed-forward runs on the chosen tokens, the rest of a block is kept."""

    def __init__(self, kept: list[torch.Tensor], blocks: list[Block], interval: int) -> None:
        self.kept, self.blocks, self.interval = kept, blocks, interval
        self.chosen: dict[int, torch.Tensor] = {}

    def attention(self, part: Part, call: Arguments) -> Any:
        is_tuple, tensors, present = self._attention(part)
        outputs = tuple(next(tensors) if is_tensor else None for is_tensor in present)
        return outputs if is_tuple else outputs[0]

    def rows_of_attention(self, part: Part, call: Arguments) -> Any:
        """The attention of the chosen tokens. A block that concatenates image and text gets an empty text."""
        is_tuple, kept, _ = self._attention(part)
        tensors = list(kept)
        rows = _read(torch.cat(tensors, dim=1) if len(tensors) > 1 else tensors[0], self._rows(part.block))  # (B, k, D)
        return (rows, *(rows[:, :0] for _ in tensors[1:])) if is_tuple else rows

    def feed_forward(self, part: Part, call: Arguments) -> Any:
        output = self._of(part.block, f"output.{part.kind}")
        rows = self._choose(part.block, part.kind)  # (B, k)
        if rows.shape[1]:
            _write(output, rows, call.proceed_with(_read(call.first, rows)))
        return output

    def inner(self, part: Part, call: Arguments) -> Any:
        return call.proceed_with(_read(call.first, self._rows(part.block)))  # (B, k, mlp)

    def fused(self, part: Part, call: Arguments) -> Any:
        output = self._of(part.block, f"output.{ALL}")
        _write(output, self._rows(part.block), call.proceed(*call.args, **call.kwargs))
        return output

    def _attention(self, part: Part) -> tuple[bool, Iterator[torch.Tensor], list[bool]]:
        """The kept output of an attention: whether it is a tuple, its tensors, and which members are tensors."""
        is_tuple, present, names = self.blocks[part.block].attention[part.name]
        return is_tuple, iter([self._of(part.block, name) for name in names]), present

    def _rows(self, block: int) -> torch.Tensor:
        """The chosen tokens of a fused block, (B, k). Its modules share the choice."""
        if block not in self.chosen:
            self.chosen[block] = self._choose(block, ALL)
        return self.chosen[block]

    def _choose(self, block: int, kind: str) -> torch.Tensor:
        """The k tokens with the highest scores, (B, k). The staleness of all others grows."""
        score, stale = self._of(block, f"score.{kind}"), self._of(block, f"stale.{kind}")  # (B, N)
        count = int(self.blocks[block].share * score.shape[1])
        rows = (score + STALENESS * stale / self.interval).topk(count, dim=1).indices
        stale += 1
        stale.scatter_(1, rows, 0)
        return rows

    def _of(self, block: int, name: str) -> torch.Tensor:
        return self.kept[self.blocks[block].places[name]]


def _read(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows of (B, N, D) at indices (B, k), (B, k, D)."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _write(values: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> None:
    values.scatter_(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]), new.to(values.dtype))


class AttentionReceived(TorchFunctionMode):
    """Computes the attention that each key receives in the code inside, as mean over heads and queries."""

    def __init__(self) -> None:
        super().__init__()
        self._received: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self._received is None:
            self._received = received(*args, **kwargs)
        return func(*args, **kwargs)

    def result(self, module: nn.Module) -> torch.Tensor:
        """Attention received by each key, (B, N)."""
        if self._received is None:
            raise UnsupportedModelError(
                f"toca must see the attention weights, but {type(module).__name__} does not call "
                "scaled_dot_product_attention: set the model's attention backend to native"
            )
        return self._received


def received(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Mean over heads and queries of ``softmax(QKᵀ·scale + mask)``, (B, N), from tensors (B, H, N, D), in chunks."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    total = query.new_zeros(key.shape[0], key.shape[2], dtype=torch.float32)  # (B, N)
    chunk = max(1, CHUNK // (query.shape[0] * query.shape[1] * key.shape[2]))
    for start in range(0, query.shape[2], chunk):
        scores = (query[:, :, start : start + chunk] @ key.transpose(-1, -2)).float() * factor  # (B, H, C, N)
        if attn_mask is not None:
            mask = attn_mask[..., start : start + chunk, :] if attn_mask.shape[-2] > 1 else attn_mask
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        total += scores.softmax(dim=-1).nan_to_num().mean(dim=1).sum(dim=1)
    return total / query.shape[2]
