"""The residual sites over every denoiser class: a kept residual gives back what ran and no block runs, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from zoo import VARIANTS, ZOO, samples_of

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.sites import denoisers

ENTRIES = {**ZOO, **VARIANTS}
AVAILABLE = [name for name, entry in ENTRIES.items() if entry.available]
METHODS: dict[str, dict[str, Any]] = {
    "teacache": {"coefficients": [0.0], "threshold": 1.0},
    "magcache": {"ratios": [1.0], "retention": 0.0},
    "first-block-cache": {"threshold": 1e9},
}
U_NETS = [
    name
    for name in AVAILABLE
    if "UNet" in name or name in ("UVit2DModel", "DreamLiteUNetModel", "StableCascadeUNet", "I2VGenXLUNet")
]
NO_RESIDUAL = [
    "BriaFibo2Transformer2DModel",
    "ConsisIDTransformer3DModel",
    "Cosmos3OmniTransformer",
    "DreamLiteTransformer2DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "Kandinsky6Transformer3DModel/silent",
    "Krea2Transformer2DModel",
    "LTX2VideoTransformer3DModel",
    "MiniMaxMusic3Transformer1DModel",
    "StableAudio3DiTModel",
]
"""Their tokens enter the tail in another shape than the first block: text beside them, or several streams."""
OUTPUT_OF_ANOTHER_SHAPE = [
    "DiTTransformer2DModel",
    "HunyuanDiT2DModel",
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "LTX2VideoTransformer3DModel",
    "LatteTransformer3DModel",
    "MiniMaxH3Transformer3DModel",
    "MotifVideoTransformer3DModel",
    "PixArtTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "RFD4ProteinaTransformer",
    "UVit2DModel",
    "UniDiffuserModel",
    "WanAnimateTransformer3DModel",
]
"""Variances beside the mean, or more channels given than returned."""


def refused(name: str, method: str, options: dict[str, Any]) -> str:
    """What the refusal says, at enabling or at the first call."""
    with pytest.raises(UnsupportedModelError) as seen:
        call_once(name, method, options)
    return str(seen.value)


@torch.no_grad()
def call_once(name: str, method: str, options: dict[str, Any]) -> None:
    model = ENTRIES[name].build()
    with spectrum_diffusion.enable(model, method, **options) as handle, handle.run(total_steps=3) as loop:
        loop.step(0)
        model(**ENTRIES[name].inputs())


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in U_NETS])
def test_the_place_of_the_image_tokens_among_a_blocks_outputs(name: str) -> None:
    """Known by their shape here, where text and image have other numbers of tokens; the table must say the same."""
    entry, model = ENTRIES[name], ENTRIES[name].build()
    wrong: list[str] = []
    row = denoisers.last_block_row(model)

    def look(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [value for value in output if isinstance(value, torch.Tensor)] if isinstance(output, tuple) else []
        given = kwargs.get("hidden_states", args[0] if args else None)
        if len(tensors) != 2 or not isinstance(given, torch.Tensor) or tensors[0].shape == tensors[1].shape:
            return
        places = [place for place, tensor in enumerate(tensors) if tensor.shape == given.shape]
        if places and places != [row.image_place(block)]:
            wrong.append(type(block).__name__)

    for block in denoisers.main_blocks(model):
        block.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(**entry.inputs())
    assert wrong == []


def names_of_what_ran(blocks: list[nn.Module]) -> list[int]:
    ran: list[int] = []
    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    return ran


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in (*U_NETS, *NO_RESIDUAL)])
@pytest.mark.parametrize("method", METHODS)
def test_a_kept_residual_gives_back_what_ran(method: str, name: str) -> None:
    entry, model = ENTRIES[name], ENTRIES[name].build()
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=0)))
    ran = names_of_what_ran(denoisers.main_blocks(model))
    with spectrum_diffusion.enable(model, method, **METHODS[method]) as handle, torch.no_grad():
        with handle.run(total_steps=4) as loop:
            loop.step(0)
            evaluated = samples_of(model(**entry.inputs(seed=0)))
            ran.clear()
            loop.step(1)
            replayed = samples_of(model(**entry.inputs(seed=0)))
            count = len(ran)
            loop.step(2)
            other = samples_of(model(**entry.inputs(seed=2)))
        summary = handle.summary()
    assert summary.evaluated == [0]
    assert count == (method == "first-block-cache")
    for ours, again, theirs in zip(evaluated, replayed, plain, strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(again, theirs, rtol=1e-4, atol=1e-5)
    if name != "PriorTransformer":  # its output is read from a token that begins the same at every step
        assert any(not torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(other, plain, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_u_nets_and_models_without_a_last_block_are_told_what_can(method: str) -> None:
    for name in U_NETS:
        message = refused(name, method, METHODS[method])
        assert "easycache" in message
        assert ENTRIES[name].cls in message


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_another_shape_are_refused(method: str) -> None:
    for name in (name for name in NO_RESIDUAL if name in AVAILABLE):
        assert "they have no residual: use a method that needs none, such as spectrum" in refused(
            name, method, METHODS[method]
        )


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in OUTPUT_OF_ANOTHER_SHAPE])
def test_easycache_gives_back_what_ran_and_runs_nothing(name: str) -> None:
    entry, model = ENTRIES[name], ENTRIES[name].build()
    ran: list[str] = []
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=1)))
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.append(type(module).__name__))
    with spectrum_diffusion.enable(model, "easycache", threshold=1e9, warmup=1) as handle, torch.no_grad():
        with handle.run(total_steps=4) as loop:
            for step in (0, 1):
                loop.step(step)
                evaluated = samples_of(model(**entry.inputs(seed=step)))
            ran.clear()
            loop.step(2)
            replayed = samples_of(model(**entry.inputs(seed=1)))
        assert handle.summary().evaluated == [0, 1]
    assert ran == []
    for ours, again, theirs in zip(evaluated, replayed, plain, strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(again, theirs, rtol=1e-4, atol=1e-5)


def test_easycache_refuses_outputs_of_another_shape() -> None:
    for name in (name for name in OUTPUT_OF_ANOTHER_SHAPE if name in AVAILABLE):
        message = refused(name, "easycache", {})
        assert message.startswith(ENTRIES[name].cls)
        assert "difference" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LTX2VideoTransformer3DModel", "denoises audio_hidden_states beside its sample"),
        ("HunyuanDiT2DModel", "takes samples of 4 channels but returns 8"),
        ("MotifVideoTransformer3DModel", "takes samples of 9 channels but returns 4"),
    ],
)
def test_easycache_refuses_at_enable_what_the_configuration_shows(name: str, message: str) -> None:
    if name not in AVAILABLE:
        pytest.skip(f"this diffusers has no {name}")
    with pytest.raises(UnsupportedModelError, match=message):
        spectrum_diffusion.enable(ENTRIES[name].build(), "easycache")


def test_the_signal_of_a_list_of_samples_is_all_of_them() -> None:
    entry, model = ENTRIES["ZImageTransformer2DModel"], ENTRIES["ZImageTransformer2DModel"].build()
    with spectrum_diffusion.enable(model, "easycache", threshold=1e9, warmup=1) as handle, torch.no_grad():
        with handle.run(total_steps=4) as loop:
            for step in (0, 1):
                loop.step(step)
                outputs = samples_of(model(**entry.inputs(batch=2, seed=step)))
            loop.step(2)
            inputs = entry.inputs(batch=2, seed=2)
            skipped = samples_of(model(**inputs))
        assert handle.summary().evaluated == [0, 1]
    samples = entry.inputs(batch=2, seed=1)["x"]
    for out, before, again, now in zip(outputs, samples, skipped, inputs["x"], strict=True):
        torch.testing.assert_close(again, now + (out - before), rtol=1e-4, atol=1e-5)
