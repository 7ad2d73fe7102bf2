"""The tiny random pipelines of `pipelines`, called with a prompt: its embeddings are noise seeded by the text."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from pipelines import PIPELINES

from spectrum_diffusion.bench.evaluate import Request, Row
from spectrum_diffusion.bench.prompts import Prompt

STEPS = 6
TEXTS = ('a <b>red</b> apple & "half" a pear', "panda")


def prompted(name: str = "flux") -> Any:
    """The pipeline of an entry, whose call takes a prompt; it counts its calls in `calls`."""
    entry = PIPELINES[name]
    pipe = entry.build()
    base = type(pipe)

    def call(
        self: Any, prompt: str, num_inference_steps: int = STEPS, callback_on_step_end: Any = None, **kwargs: Any
    ) -> Any:
        self.calls.append((prompt, num_inference_steps))
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(prompt.encode()))
        inputs = {**entry.family.inputs, **entry.arguments}
        embeds = torch.randn(inputs["prompt_embeds"].shape, generator=generator)
        arguments = {**inputs, "prompt_embeds": embeds, **kwargs}
        if callback_on_step_end is not None:
            arguments["callback_on_step_end"] = callback_on_step_end
        return base.__call__(self, num_inference_steps=num_inference_steps, **arguments)

    pipe.__class__ = type(base.__name__, (base,), {"__call__": call, "calls": []})
    return pipe


def request(*rows: Row, **changes: Any) -> Request:
    """Two prompts, a rival and a method, if nothing else is said."""
    usual: dict[str, Any] = {
        "model": "tiny",
        "rows": rows or (Row("fewer-steps", {"speedup": 2}, "fewer"), Row("reuse", {"evaluated": [0, 1, 3]}, "reuse")),
        "prompts": tuple(Prompt(text) for text in TEXTS),
        "metrics": ("psnr",),
    }
    return Request(**{**usual, **changes})
