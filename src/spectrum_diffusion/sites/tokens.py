"""The site of token-wise caching (ToCa): attention is kept, and the feed-forward runs on a few tokens only.

An evaluated call keeps each attention output, each feed-forward output (of a fused block: its output before the gate),
how much attention each token received, and for how long it has been stale. A partial call answers attention from what
is kept, runs the feed-forward on the tokens of highest score, and writes their results into what is kept, in place.
Norms, modulation and gates run as always. As a feed-forward treats each token by itself, running it on the chosen rows
of its input is the published computation; the projection of the attention is kept with it, where the public code
repeats it from the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..core.calls import Arguments, Intercepted, answering
from ..core.history import Feature
from ..core.run import Judge
from ..errors import SpectrumError, UnsupportedModelError
from . import denoisers

STALENESS = 0.25
"""Weight of a token's staleness, in intervals, beside the attention that it received."""
SHARES = {"double": 0.4, "single": 1.6}
"""Share of the ratio in blocks of either kind; layer l takes (1.5 − l/27) of it."""
LAYERS = 27
CHUNK = 1 << 25
"""Attention weights that are looked at at a time, 128 MiB of them, so that the map of all pairs is never held."""

DOUBLE = {
    "FluxTransformerBlock": ("text", "image"),
    "HunyuanVideoTransformerBlock": ("image", "text"),
    "JointTransformerBlock": ("image", "text"),
    "WanTransformerBlock": ("image",),
}
"""Blocks with a feed-forward for each kind of token, and the order of the tokens in their attention."""
SINGLE = ("FluxSingleTransformerBlock", "HunyuanVideoSingleTransformerBlock")
FEED_FORWARDS = {"ff": "image", "ffn": "image", "ff_context": "text"}


@dataclass
class Block:
    """One block's places in the kept feature: names → numbers of tensors.

    Attributes:
        share: share of its tokens that a partial call computes.
        order: kinds of tokens in its attention; a single block has "all".
    """

    share: float
    order: tuple[str, ...]
    places: dict[str, int] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)


def share_of(layer: int, kind: str, ratio: float) -> float:
    """Share of the tokens that layer ``layer`` of a stack computes on a partial step (ToCa's public code for FLUX)."""
    return min(1.0, max(0.0, ratio * (1.5 - layer / LAYERS) * SHARES[kind]))


class Tokens:
    """The site; see the head of the file.

    Args:
        model: a denoiser of FLUX, SD3, Wan or HunyuanVideo.
        options: the ratio of tokens and the interval, in which staleness is counted.
        interceptor: gives the interceptor of a module.
    """

    name = "tokens"

    def __init__(
        self, model: nn.Module, options: tuple[float, int], interceptor: Callable[[nn.Module], Intercepted]
    ) -> None:
        self._ratio, self._interval = options
        self._blocks: list[tuple[float, tuple[str, ...]]] = []
        self._places: list[tuple[int, str, Intercepted]] = []
        layers = {"double": 0, "single": 0}
        for block in denoisers.main_blocks(model):
            kind = _kind(block, model)
            share = share_of(layers[kind], kind, self._ratio)
            layers[kind] += 1
            order = DOUBLE.get(type(block).__name__, ("all",))
            self._places += [
                (len(self._blocks), role, interceptor(module)) for role, module in _roles(block, kind).items()
            ]
            self._blocks.append((share, order))

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        blocks = [Block(share, order) for share, order in self._blocks]
        record = Recording(blocks)
        with self._passing(record):
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.kept), blocks

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self._passing(Computing(list(feature), structure, self._interval)):
            return call.proceed(*call.args, **call.kwargs)

    def decide(self, call: Arguments, judge: Judge, structure: Any) -> tuple[Any, Feature | None, Any]:
        raise SpectrumError("the tokens site is for methods on a schedule")

    def _passing(self, through: Recording | Computing) -> AbstractContextManager[None]:
        return answering(
            [(place, partial(getattr(through, _HANDLERS[role]), block, role)) for block, role, place in self._places]
        )


_HANDLERS = {
    **dict.fromkeys(("attn", "attn1", "attn2", "single"), "attention"),
    **dict.fromkeys(FEED_FORWARDS, "feed_forward"),
    "proj_mlp": "inner",
    "proj_out": "fused",
}


def _kind(block: nn.Module, model: nn.Module) -> str:
    name = type(block).__name__
    if name in SINGLE:
        return "single"
    if name not in DOUBLE:
        raise UnsupportedModelError(
            f"toca can't do {type(denoisers.unwrap(model)).__name__}: its blocks ({name}) are none of "
            f"{', '.join((*DOUBLE, *SINGLE))}. It can do FluxTransformer2DModel, SD3Transformer2DModel, "
            "WanTransformer3DModel and HunyuanVideoTransformer3DModel; fora and taylorseer can do any"
        )
    return "double"


def _roles(block: nn.Module, kind: str) -> dict[str, nn.Module]:
    children = dict(block.named_children())
    if kind == "single":
        return {"single": children["attn"], "proj_mlp": children["proj_mlp"], "proj_out": children["proj_out"]}
    names = ("attn", "attn1", "attn2", *FEED_FORWARDS)
    return {name: children[name] for name in names if children.get(name) is not None}


class Recording:
    """A pass through an evaluated denoiser: keeps outputs and attention received."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self.kept: list[torch.Tensor] = []

    def attention(self, block: int, role: str, call: Arguments) -> Any:
        told = self.blocks[block]
        scored = role != "attn2"
        with AttentionReceived() if scored else nullcontext() as seen:
            output = call.proceed(*call.args, **call.kwargs)
        outputs = output if isinstance(output, tuple) else (output,)
        names = [self._keep(told, f"{role}.{i}", tensor) for i, tensor in enumerate(outputs) if tensor is not None]
        told.attention[role] = (isinstance(output, tuple), [tensor is not None for tensor in outputs], names)
        if seen is not None:
            counts = [tensor.shape[1] for tensor in outputs if tensor is not None]
            self._keep_scores(told, seen.result(call.module), counts)
        return output

    def feed_forward(self, block: int, role: str, call: Arguments) -> Any:
        if f"output.{FEED_FORWARDS[role]}" in self.blocks[block].places:
            raise UnsupportedModelError(
                f"toca chooses among all tokens, and {role} of block {block} is given them in chunks: call "
                "disable_forward_chunking() on the model"
            )
        output = call.proceed(*call.args, **call.kwargs)
        self._keep_stale(self.blocks[block], FEED_FORWARDS[role], output)
        return output

    def inner(self, block: int, role: str, call: Arguments) -> Any:
        return call.proceed(*call.args, **call.kwargs)

    def fused(self, block: int, role: str, call: Arguments) -> Any:
        output = call.proceed(*call.args, **call.kwargs)
        self._keep_stale(self.blocks[block], "all", output)
        return output

    def _keep(self, block: Block, name: str, tensor: torch.Tensor) -> str:
        block.places[name] = len(self.kept)
        self.kept.append(tensor)
        return name

    def _keep_stale(self, block: Block, kind: str, output: torch.Tensor) -> None:
        self._keep(block, f"output.{kind}", output)
        self._keep(block, f"stale.{kind}", output.new_zeros(output.shape[:2], dtype=torch.int32))

    def _keep_scores(self, block: Block, received: torch.Tensor, counts: Sequence[int]) -> None:
        """Split what each key received into the kinds of tokens; the outputs tell how many there are of each."""
        if block.order == ("all",):
            self._keep(block, "score.all", functional.normalize(received, dim=-1))
            return
        of = dict(zip(("image", "text"), counts, strict=False))  # attention answers (image, text)
        present = [kind for kind in block.order if kind in of]
        parts = received.split([of[kind] for kind in present], dim=1) if len(present) > 1 else (received,)
        for kind, part in zip(present, parts, strict=True):
            self._keep(block, f"score.{kind}", functional.normalize(part[:, : of[kind]], dim=-1))


class Computing:
    """A pass through a partial step: the feed-forward runs on the chosen tokens, all else of a block is kept."""

    def __init__(self, kept: list[torch.Tensor], blocks: list[Block], interval: int) -> None:
        self.kept, self.blocks, self.interval = kept, blocks, interval
        self.chosen: dict[int, torch.Tensor] = {}

    def attention(self, block: int, role: str, call: Arguments) -> Any:
        is_tuple, present, names = self.blocks[block].attention[role]
        tensors = iter([self._of(block, name) for name in names])
        if role == "single":
            return self._rows_of_attention(block, list(tensors), is_tuple)
        outputs = tuple(next(tensors) if there else None for there in present)
        return outputs if is_tuple else outputs[0]

    def feed_forward(self, block: int, role: str, call: Arguments) -> Any:
        kind, output = FEED_FORWARDS[role], self._of(block, f"output.{FEED_FORWARDS[role]}")
        rows = self._choose(block, kind)  # (B, k)
        if rows.shape[1]:
            _write(output, rows, call.proceed_with(_read(call.first, rows)))
        return output

    def inner(self, block: int, role: str, call: Arguments) -> Any:
        return call.proceed_with(_read(call.first, self._rows(block)))  # (B, k, mlp)

    def fused(self, block: int, role: str, call: Arguments) -> Any:
        output = self._of(block, "output.all")
        _write(output, self._rows(block), call.proceed(*call.args, **call.kwargs))
        return output

    def _rows_of_attention(self, block: int, tensors: list[torch.Tensor], is_tuple: bool) -> Any:
        """The attention of the chosen tokens; a block that concatenates image and text is given no text."""
        rows = _read(torch.cat(tensors, dim=1) if len(tensors) > 1 else tensors[0], self._rows(block))  # (B, k, D)
        return (rows, *(rows[:, :0] for _ in tensors[1:])) if is_tuple else rows

    def _rows(self, block: int) -> torch.Tensor:
        """The tokens of a fused block, chosen once, whichever of its modules asks first."""
        if block not in self.chosen:
            self.chosen[block] = self._choose(block, "all")
        return self.chosen[block]

    def _choose(self, block: int, kind: str) -> torch.Tensor:
        """Tokens of highest score, (B, k): attention received, and staleness in intervals; the others grow staler."""
        score, stale = self._of(block, f"score.{kind}"), self._of(block, f"stale.{kind}")  # (B, N)
        count = int(self.blocks[block].share * score.shape[1])
        rows = (score + STALENESS * stale / self.interval).topk(count, dim=1).indices
        stale += 1
        stale.scatter_(1, rows, 0)
        return rows

    def _of(self, block: int, name: str) -> torch.Tensor:
        return self.kept[self.blocks[block].places[name]]


def _read(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of (B, N, D) by number, (B, k) → (B, k, D)."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _write(values: torch.Tensor, rows: torch.Tensor, new: torch.Tensor) -> None:
    values.scatter_(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]), new.to(values.dtype))


class AttentionReceived(TorchFunctionMode):
    """Sees the attention of whatever runs inside: how much each key receives, mean over heads and queries."""

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
                f"toca must see which tokens are attended to, and {type(module).__name__} computes its attention "
                "elsewhere than in scaled_dot_product_attention: set the model's attention backend to native"
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
    """Mean over heads and queries of ``softmax(QKᵀ·scale + mask)``, (B, N) of (B, H, N, D), queries in chunks."""
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
