"""ToCa against a second, slow writing: every module runs on all tokens, and plain hooks put the kept ones back.

Attention received is computed from the queries and keys by an explicit softmax over all pairs; tokens are chosen by
sorting. Steps are counted by the scheduler's `step`, branches by the order of a module's calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from algorithm1 import counted_steps
from pipelines import PIPELINES, PipelineEntry
from torch import Tensor, nn

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.sites import denoisers, tokens
from spectrum_diffusion.sites.tokens import received, share_of

STEPS = 14
RATIO = 0.6
INTERVAL = 4
FULL = [0, 1, 2, 6, 10]
KEYS = {"flux": ("text", "image"), "sd3": ("image", "text"), "wan": ("image",), "hunyuan-video": ("image", "text")}
NAMES = ["flux", "flux-true-cfg", "sd3", "wan", "hunyuan-video"]


class Slow:
    """What one pipeline's hooks know."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.step = 0
        self.calls: dict[nn.Module, int] = defaultdict(int)
        self.kept: dict[Any, Any] = {}
        self.maps: list[Tensor] = []

    def next_step(self) -> None:
        self.step += 1
        self.calls.clear()

    def attend(self, original: Any) -> Any:
        def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
            if attn_mask is not None:
                scores = (
                    scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
                )
            self.maps.append(torch.softmax(scores, dim=-1).mean(dim=(1, 2)))  # (B, N)
            return original(query, key, value, attn_mask=attn_mask, **kwargs)

        return sdpa

    def clear_maps(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.maps.clear()

    def attention(self, module: nn.Module, args: Any, kwargs: Any, output: Any, block: nn.Module, scored: bool) -> Any:
        branch = self.calls[module]
        self.calls[module] += 1
        if self.step not in FULL:
            return self.kept[module, branch]
        self.kept[module, branch] = output
        if scored:
            outputs = output if isinstance(output, tuple) else (output,)
            self.kept[block, branch, "scores"] = self._split(
                self.maps[0], [o.shape[1] for o in outputs if o is not None]
            )
        return output

    def _split(self, received: Tensor, counts: list[int]) -> dict[str, Tensor]:
        parts = {"all": received}
        if len(counts) == 2 and len(self.keys) == 2:
            image, text = counts
            first = image if self.keys[0] == "image" else text
            parts |= {self.keys[0]: received[:, :first], self.keys[1]: received[:, first:]}
        else:
            parts["image"] = received
        return {kind: part / part.norm(dim=1, keepdim=True) for kind, part in parts.items()}

    def computed(
        self, module: nn.Module, args: Any, output: Tensor, block: nn.Module, kind: str, share: float
    ) -> Tensor:
        branch = self.calls[module]
        self.calls[module] += 1
        key = (module, branch)
        if self.step in FULL:
            self.kept[key] = output.clone()
            self.kept[(*key, "stale")] = torch.zeros(output.shape[:2])
            return output
        score = self.kept[block, branch, "scores"][kind] + 0.25 * self.kept[(*key, "stale")] / INTERVAL
        for sample in range(output.shape[0]):
            ranked = sorted(range(output.shape[1]), key=lambda token: -float(score[sample, token]))
            self.kept[(*key, "stale")][sample] += 1
            for token in ranked[: int(share * output.shape[1])]:
                self.kept[key][sample, token] = output[sample, token]
                self.kept[(*key, "stale")][sample, token] = 0
        return self.kept[key].clone()


def share(ratio: float, layer: int, factor: float) -> float:
    return min(1.0, ratio * (1.5 - layer / 27) * factor)


@contextmanager
def slow(pipe: Any, name: str, run: Slow, ratio: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    model, handles = pipe.transformer, []

    def watch(block: nn.Module, attention: str, outputs: dict[str, str], share: float) -> None:
        module = getattr(block, attention)
        handles.append(module.register_forward_pre_hook(run.clear_maps, with_kwargs=True))
        handles.append(
            module.register_forward_hook(
                lambda m, a, k, o: run.attention(m, a, k, o, block, attention != "attn2"), with_kwargs=True
            )
        )
        for path, kind in outputs.items():
            if getattr(block, path, None) is not None:
                handles.append(
                    getattr(block, path).register_forward_hook(
                        lambda m, a, o, kind=kind: run.computed(m, a, o, block, kind, share)
                    )
                )

    doubles = model.blocks if name == "wan" else model.transformer_blocks
    for layer, block in enumerate(doubles):
        part = share(ratio, layer, 0.4)
        if name == "wan":
            watch(block, "attn1", {"ffn": "image"}, part)
        else:
            watch(block, "attn", {"ff": "image", "ff_context": "text"}, part)
        if getattr(block, "attn2", None) is not None:
            watch(block, "attn2", {}, part)
    for layer, block in enumerate(getattr(model, "single_transformer_blocks", ())):
        watch(block, "attn", {"proj_out": "all"}, share(ratio, layer, 1.6))
    functional = torch.nn.functional
    with monkeypatch.context() as patch, counted_steps(pipe.scheduler, run.next_step):
        patch.setattr(functional, "scaled_dot_product_attention", run.attend(functional.scaled_dot_product_attention))
        yield
    for handle in handles:
        handle.remove()


def check_against_the_slow_writing(pipe: Any, name: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    entry = PIPELINES[name]
    with spectrum_diffusion.enable(pipe, "toca", ratio=ratio) as handle:
        ours = torch.as_tensor(entry.call(pipe, steps=STEPS))
        summary = handle.summary()
    assert summary.evaluated == FULL
    assert all((b.evaluated, b.partial, b.forecast) == (5, STEPS - 5, 0) for b in summary.branches.values())
    family = name.removesuffix("-true-cfg")
    with slow(pipe, family, Slow(KEYS[family]), ratio, monkeypatch):
        theirs = torch.as_tensor(entry.call(pipe, steps=STEPS))
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    return ours


@pytest.mark.parametrize("ratio", [0.2, RATIO, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_slow_writing(name: str, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokens in one kind of block, in all blocks, and all tokens of fused blocks, against a slow writing."""
    entry = PIPELINES[name]
    pipe = entry.build()
    ours = check_against_the_slow_writing(pipe, name, ratio, monkeypatch)
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    assert not torch.allclose(ours, untouched, rtol=2e-4, atol=2e-5)
    with spectrum_diffusion.enable(pipe, "toca", ratio=0.0):
        nothing = torch.as_tensor(entry.call(pipe, steps=STEPS))
    if ratio >= RATIO or entry.family is PIPELINES["flux"].family:  # else k is 0: these models have few tokens
        assert not torch.allclose(ours, nothing, rtol=2e-4, atol=2e-5)


def test_second_attention_of_sd35(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPELINES["sd3"].build()
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(**config | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"})
    pipe.transformer = model.eval()
    assert model.transformer_blocks[0].attn2 is not None
    check_against_the_slow_writing(pipe, "sd3", RATIO, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_full_steps_are_untouched(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return tensors

    entry.call(pipe, steps=STEPS, callback_on_step_end=keep)
    with spectrum_diffusion.enable(pipe, "toca"):
        entry.call(pipe, steps=STEPS, callback_on_step_end=keep)
    same = [torch.equal(a, b) for a, b in zip(seen[:STEPS], seen[STEPS:], strict=True)]
    assert same[:3] == [True] * 3  # each of them kept what a later step needs
    assert not any(same[3:])


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_is_fora_with_its_schedule(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "toca", ratio=0.0):
        nothing = torch.as_tensor(entry.call(pipe, steps=STEPS))
    with spectrum_diffusion.enable(pipe, "fora", warmup=3):
        torch.testing.assert_close(nothing, torch.as_tensor(entry.call(pipe, steps=STEPS)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan-video"])
@pytest.mark.parametrize(("interval", "nfe"), [(4, 14), (6, 10)])
def test_evaluations_of_table_6(name: str, interval: int, nfe: int) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "toca", interval=interval) as handle:
        entry.call(pipe, steps=50)
        assert handle.summary().nfe == nfe
        assert handle.summary().branches[next(iter(handle.summary().branches))].partial == 50 - nfe


def test_more_tokens_cost_more() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    costs = []
    for ratio in (0.0, 0.3, 0.6, 1.0):
        with spectrum_diffusion.enable(pipe, "toca", ratio=ratio, flops=True) as handle:
            entry.call(pipe, steps=20)
            flops = handle.summary().flops
            assert flops is not None
            costs.append(flops.evaluations)
            assert flops.evaluations < 20
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
def test_cost_of_a_partial_step_by_formula(ratio: float) -> None:
    """Less than an untouched step by all of attention, and by the feed-forward of the tokens that are not chosen."""
    entry = PIPELINES["flux"]
    pipe = entry.build()
    model = pipe.transformer
    width = model.config.num_attention_heads * model.config.attention_head_dim
    counts: list[tuple[int, int]] = []
    watch = model.transformer_blocks[0].register_forward_pre_hook(
        lambda m, args, kwargs: counts.append(
            (kwargs["hidden_states"].shape[1], kwargs["encoder_hidden_states"].shape[1])
        ),
        with_kwargs=True,
    )
    with spectrum_diffusion.enable(pipe, "toca", ratio=ratio, flops=True) as handle:
        entry.call(pipe, steps=STEPS)
        (trace,) = handle._traces.values()
        costs = {call.step: call.flops for call in trace.calls}
    watch.remove()
    image, text = counts[0]
    saved = 0
    for layer, _ in enumerate(model.transformer_blocks):
        part = share(ratio, layer, 0.4)
        left = image + text - int(part * image) - int(part * text)
        saved += attention_flops(image + text, width, projections=4) + left * 2 * (2 * width * 4 * width)
    for layer, _ in enumerate(model.single_transformer_blocks):
        left = image + text - int(share(ratio, layer, 1.6) * (image + text))
        saved += attention_flops(image + text, width, projections=3) + left * 2 * (4 + 5) * width * width
    with spectrum_diffusion.enable(pipe, "paper", evaluated=range(STEPS), flops=True) as handle:
        entry.call(pipe, steps=STEPS)
        untouched = handle.summary().flops.evaluation
    assert all(cost == untouched - saved for step, cost in costs.items() if step not in FULL)


def attention_flops(tokens: int, width: int, projections: int) -> int:
    return projections * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width


def test_share_of_tokens_by_layer() -> None:
    assert share_of(0, "double", 0.1) == pytest.approx(0.06)
    assert share_of(27, "single", 0.1) == pytest.approx(0.08)
    assert share_of(18, "double", 0.1) == pytest.approx(0.1 * (1.5 - 18 / 27) * 0.4)
    assert share_of(60, "single", 0.1) == 0.0
    assert share_of(0, "single", 1.0) == 1.0


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention_received_in_chunks(mask: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 700, 8, generator=generator), torch.randn(2, 3, 50, 8, generator=generator)
    seen = torch.rand(2, 1, 700, 50, generator=generator) > 0.3
    given = {None: None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}[mask]
    scores = (query @ key.mT) / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    expected = scores.softmax(-1).mean(dim=(1, 2))
    monkeypatch.setattr(tokens, "CHUNK", 2 * 3 * 50 * 128)  # the last of six chunks is shorter
    torch.testing.assert_close(received(query, key, key, given), expected)
    torch.testing.assert_close(received(query, key, key, given).sum(dim=1), torch.ones(2))


def test_batch_is_two_single_runs() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    inputs = entry.family.inputs
    other = {name: value.flip(-1) for name, value in inputs.items() if isinstance(value, Tensor)}
    noise = torch.randn(
        2, *torch.as_tensor(entry.call(pipe, steps=1)).shape[1:], generator=torch.Generator().manual_seed(1)
    )
    both = {name: torch.cat([inputs[name], value]) for name, value in other.items()}
    with spectrum_diffusion.enable(pipe, "toca", ratio=RATIO):
        singly = [
            torch.as_tensor(entry.call(pipe, steps=STEPS, latents=noise[i : i + 1], **given))
            for i, given in enumerate(({}, other))
        ]
        together = torch.as_tensor(entry.call(pipe, steps=STEPS, latents=noise, **both))
    torch.testing.assert_close(together, torch.cat(singly), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sdxl", "qwen-image", "cogvideox"])
def test_other_models_are_refused_by_name(name: str) -> None:
    pipe = PIPELINES[name].build()
    with pytest.raises(UnsupportedModelError, match=r"toca cannot run on .*Flux.*fora"):
        spectrum_diffusion.enable(pipe, "toca")


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan-video"])
def test_compiled_blocks_are_refused(name: str) -> None:
    pipe = PIPELINES[name].build()
    for block in denoisers.main_blocks(pipe.transformer):
        block.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"blocks of transformer are compiled.*spectrum"):
        spectrum_diffusion.enable(pipe, "toca")


def test_chunks_of_tokens_are_refused() -> None:
    entry = PIPELINES["sd3"]
    pipe = entry.build()
    for block in pipe.transformer.transformer_blocks:
        block.set_chunk_feed_forward(2, 1)
    spectrum_diffusion.enable(pipe, "toca")
    with pytest.raises(UnsupportedModelError, match="disable_forward_chunking"):
        entry.call(pipe, steps=STEPS)


class ByHand:
    """An attention processor that asks no kernel for its attention."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any) -> Any:
        return hidden_states, encoder_hidden_states


def test_attention_out_of_sight_is_refused() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    pipe.transformer.transformer_blocks[0].attn.set_processor(ByHand())
    spectrum_diffusion.enable(pipe, "toca")
    with pytest.raises(UnsupportedModelError, match="backend to native"):
        entry.call(pipe, steps=STEPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan-video"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """No further from float32 than twice what rounding does to the untouched pipeline."""
    entry = PIPELINES[name]
    pipe = entry.build()
    given = {k: v.to(dtype) for k, v in entry.family.inputs.items() if torch.is_tensor(v) and v.is_floating_point()}
    plain, exact = torch.as_tensor(entry.call(pipe, steps=STEPS)), toca(pipe, entry)
    pipe.transformer.to(dtype)
    rounding = torch.as_tensor(entry.call(pipe, steps=STEPS, **given)).float() - plain
    assert (toca(pipe, entry, **given).float() - exact).norm() < 2 * rounding.norm()


def toca(pipe: Any, entry: PipelineEntry, **given: Any) -> Tensor:
    with spectrum_diffusion.enable(pipe, "toca", ratio=RATIO):
        return torch.as_tensor(entry.call(pipe, steps=STEPS, **given))


def test_audit_measures_features_and_no_counts() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "fora", warmup=3, audit=True) as handle:
        entry.call(pipe, steps=STEPS)
        reused = handle.summary().errors
    with spectrum_diffusion.enable(pipe, "toca", ratio=RATIO, audit=True) as handle:
        entry.call(pipe, steps=STEPS)
        errors = handle.summary().errors
    assert errors.keys() == reused.keys()
    assert all(0 < errors[step] < 2 * reused[step] for step in errors)


def test_kept_features_are_counted_and_let_go() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "toca") as handle:
        entry.call(pipe, steps=STEPS)
        toca = handle.summary().history_bytes
    with spectrum_diffusion.enable(pipe, "fora", warmup=3) as handle:
        entry.call(pipe, steps=STEPS)
        assert handle.summary().history_bytes < toca < 2.5 * handle.summary().history_bytes
