"""What a calibration samples: prompts and seeds, their pairs, and the pipeline's calls for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from ..core.schedule import check_integer, is_list
from ..core.signatures import call_parameters
from ..core.summary import Summary
from ..errors import InvalidOptionError
from ..handle import Handle
from ..keys import plain

Prompt: TypeAlias = str | Mapping[str, Any]
"""A text; or, for pipelines that need more, keyword arguments of their call."""


OnRun: TypeAlias = Callable[[str], None]
"""Called after each generation, or each part of a search, with what was done."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the pipeline samples for the calibration: every prompt with every seed.

    Attributes:
        prompts: texts; or, for pipelines that need more, keyword arguments of their call.
        seeds: seeds of the noise.
        call: further keyword arguments of every call, such as ``num_inference_steps``.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int] = (0,)
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (("prompts", self.prompts), ("seeds", self.seeds)):
            if is_list(values):  # perhaps an array, or what can be read once
                object.__setattr__(self, name, values := tuple(values))
            if not isinstance(values, tuple) or not values:
                raise InvalidOptionError(
                    f"{name} must be a non-empty list, got {values!r}: pass a list with one or more {name}"
                )
        for prompt in self.prompts:
            if not isinstance(prompt, str | Mapping):
                raise InvalidOptionError(
                    f"prompts holds {prompt!r}: pass texts, or dicts with keyword arguments of the pipeline's call"
                )
            if isinstance(prompt, Mapping):
                _refuse("prompts", prompt, "generator")
        object.__setattr__(self, "seeds", tuple(check_integer("seed", seed, least=0) for seed in self.seeds))
        if not isinstance(self.call, Mapping):
            raise InvalidOptionError(
                f"call must be a dict, got {self.call!r}: pass keyword arguments of the pipeline's call"
            )
        _refuse("call", self.call, "generator", "prompt")

    def generate(self, pipe: Any, handle: Handle, on_run: OnRun, purpose: str) -> list[Summary]:
        """Generate all samples; returns the summary of each."""
        summaries = []
        for prompt in self.prompts:
            for seed in self.seeds:
                pipe(**keywords(pipe, [Pair(prompt, seed)], self.call))
                summaries.append(handle.summary())
                on_run(purpose)
        return summaries

    def to_dict(self) -> dict[str, Any]:
        prompts = [sorted(prompt) if isinstance(prompt, Mapping) else prompt for prompt in self.prompts]
        return {"prompts": prompts, "seeds": list(self.seeds), "call": plain(self.call)}


def _refuse(where: str, arguments: Mapping[str, Any], *names: str) -> None:
    """Refuse arguments that the calibration sets for each pair."""
    for name in names:
        if name in arguments:
            raise InvalidOptionError(
                f"{where} has {name}, which differs from sample to sample: pass prompts=… and seeds=… instead"
            )


@dataclass(frozen=True)
class Pair:
    """A prompt with the seed of its noise."""

    prompt: Prompt
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": sorted(self.prompt) if isinstance(self.prompt, Mapping) else self.prompt, "seed": self.seed}


def split(prompts: Sequence[Prompt], seed: int, fitted: int, held_out: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to fit to, and pairs to validate on. No two have the same seed.

    Of many prompts, those spread evenly over the list are taken. Each prompt is either fitted to or held out, unless
    there are too few of them.
    """
    wanted = fitted + held_out
    chosen = [prompts[i * len(prompts) // wanted] for i in range(wanted)] if len(prompts) > wanted else list(prompts)
    apart = _places(len(chosen), len(chosen) * held_out // wanted) if len(chosen) > 1 else []
    groups = [p for i, p in enumerate(chosen) if i not in apart], [p for i, p in enumerate(chosen) if i in apart]
    kept, validated = groups[0], groups[1] or groups[0]
    return (
        [Pair(kept[i % len(kept)], seed + i) for i in range(fitted)],
        [Pair(validated[i % len(validated)], seed + fitted + i) for i in range(held_out)],
    )


def _places(count: int, wanted: int) -> list[int]:
    """So many of ``count`` places, at least one, spread evenly up to the last."""
    number = max(1, wanted)
    return [(i + 1) * count // number - 1 for i in range(number)]


def batches(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    """The pairs in batches of at most ``size``; keyword arguments beside a prompt can't be batched."""
    size = size if all(isinstance(pair.prompt, str) for pair in pairs) else 1
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def keywords(pipe: Any, pairs: Sequence[Pair], call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the pipeline's call that samples the pairs together."""
    generators = [torch.Generator("cpu").manual_seed(pair.seed) for pair in pairs]
    given = {"generator": generators, **skip_decoder(pipe), **call}
    if len(pairs) > 1:
        return {**given, "prompt": [pair.prompt for pair in pairs]}
    prompt = pairs[0].prompt
    alone = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    return {**given, "generator": generators[0], **alone}


def skip_decoder(pipe: Any) -> dict[str, str]:
    """Keyword arguments that leave out the decoder, if the pipeline can, because only the denoiser's calls matter."""
    return {"output_type": "latent"} if "output_type" in call_parameters(pipe) else {}


def content(pairs: Sequence[Pair]) -> list[list[Any]]:
    """The pairs as they determine a result."""
    return [[pair.prompt, pair.seed] for pair in pairs]
