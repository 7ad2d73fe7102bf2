"""The pairs of prompt and seed that a plan is fitted to and validated on, and the pipeline's calls for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ..core.signatures import call_parameters

Prompt: TypeAlias = str | Mapping[str, Any]
"""A text; or, for pipelines that need more, keyword arguments of their call."""


@dataclass(frozen=True)
class Pair:
    """A prompt with the seed of its noise."""

    prompt: Prompt
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": sorted(self.prompt) if isinstance(self.prompt, Mapping) else self.prompt, "seed": self.seed}


def split(prompts: Sequence[Prompt], seed: int, fitted: int, left_out: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to fit to, and pairs to validate on. No two have the same seed.

    Of many prompts, those spread evenly over the list are taken. Each prompt is either fitted or left out, unless
    there are too few of them.
    """
    wanted = fitted + left_out
    chosen = [prompts[i * len(prompts) // wanted] for i in range(wanted)] if len(prompts) > wanted else list(prompts)
    apart = _places(len(chosen), len(chosen) * left_out // wanted) if len(chosen) > 1 else []
    groups = [p for i, p in enumerate(chosen) if i not in apart], [p for i, p in enumerate(chosen) if i in apart]
    kept, validated = groups[0], groups[1] or groups[0]
    return (
        [Pair(kept[i % len(kept)], seed + i) for i in range(fitted)],
        [Pair(validated[i % len(validated)], seed + fitted + i) for i in range(left_out)],
    )


def _places(count: int, wanted: int) -> list[int]:
    """So many of ``count`` places, at least one, spread evenly up to the last."""
    number = max(1, wanted)
    return [(i + 1) * count // number - 1 for i in range(number)]


def chunks(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
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
