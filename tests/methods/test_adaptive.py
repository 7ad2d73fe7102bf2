"""The methods that decide while they run, against a second, slow writing of them.

Everything runs at every step; plain forward hooks, on modules that are named here one by one, note what each method
looks at and replace the tail's input, or the output, where it would skip. Steps are counted by the scheduler's `step`,
branches by the order of the denoiser's calls.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from aborts import AbortError, fail_in_denoiser
from algorithm1 import counted_steps
from pipelines import PIPELINES
from torch import Tensor, nn

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, UnsupportedModelError
from spectrum_diffusion.methods.adaptive import calibrations
from spectrum_diffusion.methods.easycache import ExpectedChange
from spectrum_diffusion.methods.first_block_cache import ChangeSinceEvaluated
from spectrum_diffusion.methods.magcache import AccumulatedError, nearest
from spectrum_diffusion.methods.teacache import AccumulatedChange
from spectrum_diffusion.sites import denoisers

STEPS = 14
HUGE = 1e9


@dataclass(frozen=True)
class Parts:
    """Where a denoiser's first block is, and which of its outputs are the image tokens."""

    first: str
    image: int | None
    embedder: str | None = None  # looked at in place of the first block's norm1


PARTS = {
    "flux": Parts("transformer_blocks.0", 1),
    "flux-true-cfg": Parts("transformer_blocks.0", 1),
    "sd3": Parts("transformer_blocks.0", 1),
    "wan": Parts("blocks.0", None, "condition_embedder"),
    "hunyuan-video": Parts("transformer_blocks.0", 0),
}


def mean(value: Tensor) -> float:
    return float(np.abs(value.double().numpy()).mean())


def change(value: Tensor, before: Tensor) -> float:
    return mean(value - before) / mean(before)


@dataclass
class Seen:
    """One call of the denoiser."""

    sample: Tensor | None = None
    modulated: Tensor | None = None
    first_input: Tensor | None = None
    first_output: Tensor | None = None


@dataclass
class State:
    """What is kept of one branch: the last call, the last evaluated one, what it gave, and the method's sum."""

    last: Seen | None = None
    evaluated: Seen | None = None
    residual: Tensor | None = None
    output: Tensor | None = None
    sum: float = 0.0
    product: float = 1.0
    count: int = 0
    rate: float | None = None


Decide = Callable[[State, Seen, int, int], bool]
"""Whether the call at (step, total) is skipped."""


def teacache(state: State, seen: Seen, step: int, total: int, threshold: float) -> bool:
    if step in (0, total - 1):
        state.sum = 0.0
        return False
    x = change(seen.modulated, state.last.modulated)
    state.sum += 2.0 * x**2 + x + 0.001
    if state.sum < threshold:
        return True
    state.sum = 0.0
    return False


def first_block_cache(state: State, seen: Seen, step: int, total: int, threshold: float) -> bool:
    if step == 0:
        return False
    now = seen.first_output - seen.first_input
    then = state.evaluated.first_output - state.evaluated.first_input
    return change(now, then) <= threshold


def easycache(state: State, seen: Seen, step: int, total: int, threshold: float) -> bool:
    if step < 3 or step == total - 1:
        state.sum = 0.0
        return False
    state.sum += state.rate * mean(seen.sample - state.last.sample) / mean(state.output)
    if state.sum < threshold:
        return True
    state.sum = 0.0
    return False


RATIOS = [1.0, 1.3, 1.1, 0.97, 0.99, 0.92, 0.9, 0.95, 1.01, 0.99, 0.9, 0.85, 0.9, 0.7]


def magcache(state: State, seen: Seen, step: int, total: int, threshold: float) -> bool:
    if step >= 3:  # R 0.2 of 14
        state.product *= RATIOS[step]
        state.sum += abs(1 - state.product)
        state.count += 1
        if state.sum <= threshold and state.count <= 2:
            return True
        state.product, state.sum, state.count = 1.0, 0.0, 0
    return False


class Slow:
    """Runs everything, and replaces what a method would have skipped."""

    def __init__(self, model: nn.Module, parts: Parts, tail: str, decide: Decide, base: str) -> None:
        self.decide, self.base, self.parts = decide, base, parts
        self.step = self.branch = 0
        self.states: list[State] = []
        self.evaluated: list[list[int]] = []
        self.seen = Seen()
        first = model.get_submodule(parts.first)
        watched = model.get_submodule(parts.embedder) if parts.embedder else first.norm1
        self.hooks = [
            model.register_forward_pre_hook(self.begin, with_kwargs=True),
            watched.register_forward_hook(self.note_modulated),
            first.register_forward_hook(self.note_first, with_kwargs=True),
            model.get_submodule(tail).register_forward_pre_hook(self.replace_tail),
            model.register_forward_hook(self.end),
        ]

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen, self.skipped = Seen(sample=kwargs["hidden_states"].clone()), None
        if self.branch == len(self.states):
            self.states.append(State())
            self.evaluated.append([])

    def note_modulated(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.modulated = output[0].clone()

    def note_first(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.seen.first_input = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).clone()
        self.seen.first_output = (output if self.parts.image is None else output[self.parts.image]).clone()

    def skips(self) -> bool:
        state = self.states[self.branch]
        skipped = self.decide(state, self.seen, self.step, self.total)
        if not skipped:
            self.evaluated[self.branch].append(self.step)
        return skipped

    def replace_tail(self, module: nn.Module, args: Any) -> Any:
        if self.base == "sample":
            return None
        state = self.states[self.branch]
        base = self.seen.first_input if self.base == "before" else self.seen.first_output
        if self.skips():
            return (base + state.residual, *args[1:])
        state.residual, state.evaluated = args[0] - base, self.seen
        return None

    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        state, replaced = self.states[self.branch], None
        if self.base == "sample":
            now = output[0]
            if self.skips():
                replaced = (self.seen.sample + state.residual,)
            else:
                if state.output is not None:
                    state.rate = mean(now - state.output) / mean(self.seen.sample - state.evaluated.sample)
                state.residual, state.output, state.evaluated = now - self.seen.sample, now.clone(), self.seen
        state.last = self.seen
        self.branch += 1
        return replaced

    @contextmanager
    def running(self, pipe: Any, total: int) -> Iterator[None]:
        self.total = total
        try:
            with counted_steps(pipe.scheduler, self.next_step):
                yield
        finally:
            for hook in self.hooks:
                hook.remove()

    def next_step(self) -> None:
        self.step, self.branch = self.step + 1, 0


@dataclass(frozen=True)
class Case:
    """A method with options, its slow writing, where its residual begins, and thresholds by pipeline."""

    method: str
    decide: Any
    base: str
    thresholds: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case(
        "teacache",
        teacache,
        "before",
        {"flux": 0.15, "flux-true-cfg": 0.2, "sd3": 0.15, "wan": 3.0, "hunyuan-video": 0.1},
        {"coefficients": [2.0, 1.0, 0.001]},
    ),
    Case(
        "first-block-cache",
        first_block_cache,
        "after",
        {"flux": 0.32, "flux-true-cfg": 0.3, "sd3": 0.32, "wan": 0.08, "hunyuan-video": 0.3},
    ),
    Case(
        "easycache",
        easycache,
        "sample",
        {"flux": 0.1, "flux-true-cfg": 0.15, "sd3": 0.1, "wan": 0.2, "hunyuan-video": 0.1},
        {"warmup": 3},
    ),
    Case(
        "magcache",
        magcache,
        "before",
        dict.fromkeys(PARTS, 0.15),
        {"ratios": RATIOS, "limit": 2, "retention": 0.2},
    ),
]
RESIDUAL = [case for case in CASES if case.method != "easycache"]


@contextmanager
def slow(pipe: Any, name: str, case: Case, threshold: float) -> Iterator[Slow]:
    def decide(state: State, seen: Seen, step: int, total: int) -> bool:
        return case.decide(state, seen, step, total, threshold)

    run = Slow(pipe.transformer, PARTS[name], PIPELINES[name].tail, decide, case.base)
    with run.running(pipe, STEPS):
        yield run


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_equal_to_the_slow_writing(case: Case, name: str) -> None:
    entry, threshold = PIPELINES[name], case.thresholds[name]
    pipe = entry.build()
    seen: dict[str, list[int]] = {}

    def on_step(step: int, branch: str, action: str, reason: str) -> None:
        seen.setdefault(branch, []).extend([step] if action == "evaluated" else [])

    with spectrum_diffusion.enable(pipe, case.method, threshold=threshold, on_step=on_step, **case.options) as handle:
        ours = torch.as_tensor(entry.call(pipe, steps=STEPS))
        summary = handle.summary()
    with slow(pipe, name, case, threshold) as run:
        theirs = torch.as_tensor(entry.call(pipe, steps=STEPS))
    assert list(seen.values()) == run.evaluated
    assert 3 < summary.nfe < STEPS - 2
    assert not summary.fallbacks
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    assert not torch.allclose(ours, untouched, rtol=2e-4, atol=2e-5)
    skipped = "partial" if case.method == "first-block-cache" else "forecast"
    for branch in summary.branches.values():
        assert branch.evaluated + getattr(branch, skipped) == branch.steps == STEPS


@pytest.mark.parametrize("case", RESIDUAL, ids=lambda case: case.method)
def test_as_many_text_as_image_tokens(case: Case) -> None:
    """The shape doesn't tell which of a block's outputs is the image then."""
    entry, threshold = PIPELINES["flux"], case.thresholds["flux"]
    pipe, text = entry.build(), torch.linspace(-1, 1, 256).view(1, 16, 16)  # 16 image tokens too
    with spectrum_diffusion.enable(pipe, case.method, threshold=threshold, **case.options) as handle:
        ours, summary = entry.call(pipe, steps=STEPS, prompt_embeds=text), handle.summary()
    with slow(pipe, "flux", case, threshold) as run:
        theirs = entry.call(pipe, steps=STEPS, prompt_embeds=text)
        tokens = run.states[0].residual.shape[1]
    assert tokens == 16
    assert [summary.evaluated] == run.evaluated
    assert 1 < summary.nfe < STEPS
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan-video"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_threshold_0_evaluates_all_and_changes_no_bit(case: Case, name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    options = {**case.options, **({"coefficients": [-1.0, -1.0]} if case.method == "teacache" else {})}
    with spectrum_diffusion.enable(pipe, case.method, threshold=0, **options) as handle:
        assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS)), untouched)
        assert handle.summary().evaluated == list(range(STEPS))


FORCED = [
    ("teacache", {"coefficients": [1.0, 0.0]}, [0, 13]),
    ("teacache", {"coefficients": [1.0, 0.0], "warmup": 3}, [0, 1, 2, 13]),
    ("first-block-cache", {}, [0]),
    ("first-block-cache", {"warmup": 2}, [0, 1]),
    ("easycache", {}, [*range(10), 13]),
    ("easycache", {"warmup": 1}, [0, 1, 13]),  # how fast the output changes is known after two
    ("magcache", {"ratios": [1.0], "limit": 100}, [0]),
    ("magcache", {"ratios": [1.0], "limit": 100, "retention": 0.5}, [*range(7)]),
    ("magcache", {"ratios": [1.0], "limit": 3}, [0, 4, 8, 12]),
    ("magcache", {"ratios": [1.0], "limit": 100, "warmup": 4}, [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("method", "options", "evaluated"), FORCED)
def test_a_huge_threshold_leaves_the_forced_steps(method: str, options: dict[str, Any], evaluated: list[int]) -> None:
    entry = PIPELINES["wan"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, method, threshold=HUGE, **options) as handle:
        entry.call(pipe, steps=STEPS)
        summary = handle.summary()
    assert summary.evaluated == evaluated
    assert not summary.fallbacks
    assert [branch.evaluated for branch in summary.branches.values()] == [len(evaluated)] * 2


def number(value: float) -> Tensor:
    return torch.tensor([value])


def test_teacache_sums_by_hand() -> None:
    decider = AccumulatedChange((1.0, 0.0), threshold=0.3)
    # Relative changes 0.1, 0.1, 0.1 and 0.5: the third reaches 0.3 (and is evaluated), the sum begins anew.
    signals = [100.0, 110.0, 121.0, 133.1001, 199.65]
    assert [decider.skips(i, number(s), i > 0) for i, s in enumerate(signals)] == [False, True, True, False, False]
    assert decider.skips(5, number(199.65), True)
    assert not decider.skips(6, number(199.65), False)
    decider.reset()
    assert not decider.skips(7, number(199.65), True)


def test_first_block_compares_with_the_last_evaluated_step() -> None:
    decider = ChangeSinceEvaluated(0.25)
    assert not decider.skips(0, number(8.0), False)
    decider.learn(number(8.0), (), None)
    assert [decider.skips(i, number(s), True) for i, s in enumerate((9.0, 10.0, 10.1))] == [True, True, False]


def test_easycache_sums_by_hand() -> None:
    decider = ExpectedChange(0.5)

    def evaluate(sample: float, output: float) -> None:
        assert not decider.skips(0, number(sample), may_skip=True)
        decider.learn(number(sample), (), (number(output),))

    evaluate(1.0, 10.0)
    evaluate(2.0, 14.0)
    assert decider.rate == 4.0  # |14 − 10| / |2 − 1|
    assert decider.skips(2, number(2.875), True)  # 4 · 0.875 / 14 = 0.25
    assert decider.skips(3, number(3.5), True)  # + 4 · 0.625 / 14 = 0.43
    evaluate(4.0, 26.0)  # + 4 · 0.5 / 14 = 0.57
    assert decider.rate == 6.0  # |26 − 14| / |4 − 2|, between evaluated steps
    assert decider.expected == 0.0


def test_magcache_sums_by_hand() -> None:
    decider = AccumulatedError([1.0, 0.9, 0.9, 0.9, 0.99, 0.99, 0.99, 0.99], threshold=0.28, limit=2)
    # 0.1; 0.19 more, as the ratios multiply, is too much; 0.1; 0.109 more; the limit of two; 0.01.
    expected = [False, True, False, True, True, False, True, True]
    assert [decider.skips(step, number(0.0), step > 0) for step in range(8)] == expected


def test_ratios_of_another_number_of_steps_are_the_nearest() -> None:
    ratios = [1.0, 0.9, 0.8, 0.7, 0.6]
    assert nearest(ratios, 5) == ratios
    assert nearest(ratios, 3) == [1.0, 0.8, 0.6]
    assert nearest(ratios, 9) == [1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6]  # halves go to the even place
    assert nearest(ratios, 1) == [0.6]


@pytest.mark.parametrize(
    ("cls", "sizes", "name", "thresholds"),
    [
        ("FluxTransformer2DModel", {}, "FluxTransformer2DModel-57x3072", (0.6, 0.25)),
        ("HunyuanVideoTransformer3DModel", {}, "HunyuanVideoTransformer3DModel-60x3072", (0.15, 0.1)),
        ("WanTransformer3DModel", {}, "WanTransformer3DModel-40x5120", (0.2, 0.14)),
        (
            "WanTransformer3DModel",
            {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
            "WanTransformer3DModel-30x1536",
            (0.08, 0.05),
        ),
    ],
)
def test_published_coefficients_are_found_by_class_depth_and_width(
    cls: str, sizes: dict[str, int], name: str, thresholds: tuple[float, float]
) -> None:
    import diffusers

    with torch.device("meta"):  # at full size
        model = getattr(diffusers, cls)(**sizes).eval()
    assert denoisers.identity(model) == name
    with spectrum_diffusion.enable(model, "teacache") as handle:
        assert handle.method.coefficients == tuple(calibrations()["teacache"][name]["coefficients"])
        assert handle.method.threshold == thresholds[0]
    with spectrum_diffusion.enable(model, "teacache", threshold=thresholds[1]) as handle:
        assert handle.method.threshold == thresholds[1]


def test_another_model_of_as_many_blocks_takes_no_calibration() -> None:
    import diffusers

    tiny = spectrum_diffusion.load_default_pipeline().transformer
    wider = {**tiny.config, "num_attention_heads": 2 * tiny.config.num_attention_heads}
    model = diffusers.FluxTransformer2DModel.from_config(wider).eval()
    for method in ("teacache", "magcache"):
        with pytest.raises(InvalidOptionError, match="none for FluxTransformer2DModel-6x320: run `spectrum tune"):
            spectrum_diffusion.enable(model, method)


@pytest.mark.parametrize(("method", "option"), [("teacache", "coefficients"), ("magcache", "ratios")])
def test_without_a_calibration_the_way_to_one_is_told(method: str, option: str) -> None:
    pipe = PIPELINES["sd3"].build()
    with pytest.raises(
        InvalidOptionError, match=rf"none for SD3Transformer2DModel-3x32: run `spectrum tune --method {method}"
    ):
        spectrum_diffusion.enable(pipe, method)
    with pytest.raises(InvalidOptionError, match=rf"{option}=\[\] is empty"):
        spectrum_diffusion.enable(pipe, method, **{option: []})


@pytest.mark.parametrize("method", ["teacache", "magcache"])
def test_the_model_that_ships_is_calibrated(method: str) -> None:
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with spectrum_diffusion.enable(pipe, method) as handle:
        pipe("red apple", generator=torch.Generator().manual_seed(0), output_type="latent")
        assert 12 <= handle.summary().nfe <= 17


@pytest.mark.parametrize("case", RESIDUAL, ids=lambda case: case.method)
@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_u_nets_have_no_residual(name: str, case: Case) -> None:
    pipe = PIPELINES[name].build()
    with pytest.raises(UnsupportedModelError, match=r"UNet2DConditionModel is a U-Net.*deepcache.*easycache"):
        spectrum_diffusion.enable(pipe, case.method, **case.options)


def test_easycache_on_a_u_net_and_when_its_batch_changes_midway() -> None:
    entry = PIPELINES["sdxl-guidance-interval"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "easycache", threshold=HUGE, warmup=2) as handle:
        entry.call(pipe, steps=10)
        summary = handle.summary()
    assert summary.evaluated == [0, 1, 6, 7, 9]
    assert summary.fallbacks == {6: "shape changed"}


def test_easycache_refuses_what_is_given_more_channels_than_it_returns() -> None:
    entry = PIPELINES["wan-i2v"]
    pipe = entry.build()
    assert denoisers.identity(pipe.transformer) == "WanTransformer3DModel-2x24-in36"
    untouched = entry.call(pipe)
    with pytest.raises(UnsupportedModelError, match=r"WanTransformer3DModel takes .*36.*returns.*use spectrum"):
        spectrum_diffusion.enable(pipe, "easycache")
    assert torch.equal(entry.call(pipe), untouched)
    with spectrum_diffusion.enable(pipe, "teacache", coefficients=[0.0], threshold=0.1) as handle:
        entry.call(pipe)
        assert handle.summary().nfe == 2


@pytest.mark.parametrize("case", RESIDUAL, ids=lambda case: case.method)
@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan-video"])
def test_compiled_blocks(name: str, case: Case) -> None:
    entry, options = PIPELINES[name], {**case.options, "threshold": case.thresholds[name]}
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, case.method, **options) as handle:
        expected, evaluated = entry.call(pipe, steps=STEPS), handle.summary().evaluated
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with spectrum_diffusion.enable(pipe, case.method, **options) as handle:
        compiled = entry.call(pipe, steps=STEPS)
        assert handle.summary().evaluated == evaluated
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", RESIDUAL, ids=lambda case: case.method)
def test_a_denoiser_compiled_as_a_whole_is_told_what_can_be_used(case: Case) -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"compiled as a whole.*easycache.*compile_repeated_blocks"):
        spectrum_diffusion.enable(pipe, case.method, **case.options)
    torch._dynamo.reset()


def deciders_that_hold_tensors() -> list[Any]:
    kinds = (AccumulatedChange, ChangeSinceEvaluated, ExpectedChange)
    deciders = [thing for thing in gc.get_objects() if type(thing) in kinds]  # isinstance asks proxies of what is gone
    return [decider for decider in deciders if any(isinstance(value, Tensor) for value in vars(decider).values())]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_a_run_after_an_aborted_one_decides_as_the_first(case: Case) -> None:
    entry, options = PIPELINES["flux"], {**case.options, "threshold": case.thresholds["flux"]}
    pipe = entry.build()
    handle = spectrum_diffusion.enable(pipe, case.method, **options)
    expected, evaluated = entry.call(pipe, steps=STEPS), handle.summary().evaluated
    assert handle.summary().history_bytes > 0
    assert not deciders_that_hold_tensors()
    undo = fail_in_denoiser(pipe, entry, 7)
    if case.method == "easycache":  # the tail does not run on its skipped steps
        undo()
        undo = fail_in_denoiser(pipe, entry, next(step for step in evaluated if step > 3))
    with pytest.raises(AbortError):
        entry.call(pipe, steps=STEPS)
    undo()
    assert not deciders_that_hold_tensors()
    assert torch.equal(entry.call(pipe, steps=STEPS), expected)
    assert handle.summary().evaluated == evaluated


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_audit_samples_the_same_and_measures_the_residual(case: Case) -> None:
    entry, options = PIPELINES["flux"], {**case.options, "threshold": case.thresholds["flux"]}
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, case.method, **options) as handle:
        expected, summary = entry.call(pipe, steps=STEPS), handle.summary()
    with spectrum_diffusion.enable(pipe, case.method, audit=True, **options) as handle:
        assert torch.equal(entry.call(pipe, steps=STEPS), expected)
        errors = handle.summary().errors
    assert sorted([*errors, *summary.evaluated]) == list(range(STEPS))
    assert all(0 < error < 2 for error in errors.values())
