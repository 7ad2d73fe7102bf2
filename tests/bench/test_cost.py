"""Cost: the schedule of the measurements with made-up clocks, real pipelines, and FLOP against closed forms."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from zoo import ZOO

import spectrum_diffusion
from spectrum_diffusion.bench import cost
from spectrum_diffusion.bench.cost import Timing, forward_flops, measure, peak_memory, reset_peak_memory
from spectrum_diffusion.errors import InvalidOptionError, UnsupportedModelError

CPU = torch.device("cpu")


def test_median_and_quartiles_by_hand() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))
    assert Timing((7.0,)).quartiles == (7.0, 7.0)
    assert Timing((1.0, 2.0)).quartiles == (1.25, 1.75)


# --- a pipeline whose every act takes a known time ---


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class FakePipe:
    """Encodes for 1 s, samples for the seconds that its method needs, decodes for 2 s; notes who called."""

    device = CPU

    def __init__(self, clock: Clock) -> None:
        self.clock, self.method, self.calls = clock, "plain", []
        self.seconds = {"plain": [10.0], "fast": [4.0]}

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[list[int]]:
        yield []

    def __call__(self) -> None:
        self.calls.append(self.method)
        self.clock.now += 1
        with self.progress_bar(total=3) as bar:
            bar.append(1)
            spent = self.seconds[self.method]
            self.clock.now += spent.pop(0) if len(spent) > 1 else spent[0]
        self.clock.now += 2


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> FakePipe:
    fake = FakePipe(Clock(monkeypatch))

    @contextmanager
    def enable(target: FakePipe, method: str, **options: Any) -> Iterator[Any]:
        target.method = method
        yield type("Handle", (), {"summary": staticmethod(lambda: None)})
        target.method = "plain"

    monkeypatch.setattr(cost, "enable", enable)
    return fake


def test_call_and_loop_are_told_apart(pipe: FakePipe) -> None:
    pipe.seconds["fast"] = [99.0, 4.0, 6.0, 5.0]  # the first is the warm-up
    costs = measure(pipe, pipe, {"plain": None, "fast": ("fast", {})}, repeats=3)
    assert costs["plain"].call.seconds == (13.0, 13.0, 13.0)
    assert costs["plain"].loop == Timing((10.0, 10.0, 10.0))
    assert costs["fast"].loop == Timing((4.0, 6.0, 5.0))
    assert costs["fast"].call.median == 8.0
    assert "progress_bar" not in vars(pipe)


def test_methods_take_turns_at_being_first(pipe: FakePipe) -> None:
    measure(pipe, pipe, {"plain": None, "fast": ("fast", {})}, repeats=3, warm_up=1)
    assert pipe.calls == ["fast", "plain", "plain", "fast", "fast", "plain", "plain", "fast"]
    pipe.calls.clear()
    measure(pipe, pipe, {"plain": None}, repeats=2, warm_up=0)
    assert pipe.calls == ["plain", "plain"]


def test_a_failing_call_leaves_the_pipeline_as_it_was(pipe: FakePipe) -> None:
    def fail() -> None:
        with pipe.progress_bar(total=3):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        measure(pipe, fail, {"plain": None})
    assert "progress_bar" not in vars(pipe)


def test_several_loops_add_up_and_none_is_none(pipe: FakePipe) -> None:
    cost_of_both = measure(pipe, lambda: (pipe(), pipe()), {"plain": None}, repeats=1, warm_up=0)["plain"]
    assert (cost_of_both.call.median, cost_of_both.loop.median) == (26.0, 20.0)
    assert measure(pipe, lambda: None, {"plain": None}, repeats=1)["plain"].loop is None


def test_a_pipeline_is_watched_where_it_computes() -> None:
    offloaded = type("Offloaded", (), {"device": CPU, "_execution_device": torch.device("meta")})()
    assert cost.device_of(offloaded) == torch.device("meta")
    offloaded._execution_device = None
    assert cost.device_of(offloaded) == CPU


def test_a_watched_call_gives_what_it_gave(pipe: FakePipe) -> None:
    found, spent = cost.watched(pipe, lambda: (pipe(), "picture")[1])
    assert (found, spent.seconds, spent.loop) == ("picture", 13.0, 10.0)
    assert spent.memory.bytes > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"repeats": 0}, "repeats"), ({"warm_up": -1}, "warm_up"), ({"methods": {}}, "no method to measure")],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str, pipe: FakePipe) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        measure(pipe, pipe, **{"methods": {"plain": None}, **options})


# --- real pipelines ---


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan"])
def test_cost_of_real_pipelines(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    methods = {"reference": None, "paper": ("paper", {}), "reuse": ("reuse", {"interval": 4})}
    costs = measure(pipe, lambda: entry.call(pipe, steps=20), methods, repeats=2, flops=True)
    assert list(costs) == list(methods)
    for measured in costs.values():
        assert measured.loop is not None
        assert all(0 < loop < call for loop, call in zip(measured.loop.seconds, measured.call.seconds, strict=True))
    assert costs["reference"].summary is costs["reference"].flops is None
    with spectrum_diffusion.enable(pipe, "paper", flops=True) as handle:
        entry.call(pipe, steps=20)
        expected = handle.summary()
    assert costs["paper"].summary.evaluated == expected.evaluated
    assert costs["paper"].summary.flops is None  # nothing is counted while it is timed
    assert costs["paper"].flops == expected.flops


@pytest.mark.gpu
def test_cost_on_a_device() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build().to("cuda")
    costs = measure(pipe, lambda: entry.call(pipe, steps=20), {"reference": None, "paper": ("paper", {})}, repeats=3)
    for measured in costs.values():
        assert measured.loop is not None
        assert all(0 < loop < call for loop, call in zip(measured.loop.seconds, measured.call.seconds, strict=True))
        assert measured.memory.kind == "allocated on the device"
        assert 0 < measured.memory.bytes < 2**30


# --- memory ---


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_peak_is_of_what_was_since_the_reset() -> None:
    def peak_of(megabytes: int) -> int:
        reset_peak_memory(CPU)
        torch.ones(megabytes * 2**18)  # four bytes each
        return peak_memory(CPU).bytes

    small, large, again = peak_of(1), peak_of(300), peak_of(1)
    assert large - small > 250 * 2**20
    assert large - again > 250 * 2**20
    assert peak_memory(CPU).kind == "resident in the process"


def test_peak_without_a_reset_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts bytes
    memory = peak_memory(CPU)
    assert memory.kind == "resident in the process since its start"
    assert memory.bytes == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) == cost.Memory(0, "unknown on this system")


# --- FLOP ---


def flux_inputs(image_tokens: int, text_tokens: int) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.empty(1, image_tokens, 64, device="meta"),
        "encoder_hidden_states": torch.empty(1, text_tokens, 4096, device="meta"),
        "pooled_projections": torch.empty(1, 768, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "guidance": torch.empty(1, device="meta"),
        "img_ids": torch.empty(image_tokens, 3, device="meta"),
        "txt_ids": torch.empty(text_tokens, 3, device="meta"),
    }


def test_flux_dev_takes_74_385_teraflop() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):  # the configuration of FLUX.1-dev is the class's own with guidance
        model = FluxTransformer2DModel(guidance_embeds=True)
    flops = forward_flops(model, flux_inputs(4096, 512))
    tokens, width = 4096 + 512, 3072
    attention = (19 + 38) * 2 * 2 * tokens**2 * width
    assert flops / 1e12 == pytest.approx(74.385, abs=5e-4)
    assert attention / 1e12 == pytest.approx(14.872, abs=5e-4)
    assert forward_flops(model, flux_inputs(4096, 0)) < flops


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel", "UNet2DConditionModel"])
def test_a_twin_of_the_configuration_counts_the_same(name: str) -> None:
    entry = ZOO[name]
    model, inputs = entry.build(), entry.inputs(seed=0)
    assert not any(parameter.is_meta for parameter in model.parameters())
    flops = forward_flops(model, inputs)
    assert flops == forward_flops(model.to("meta"), inputs) > 0


def test_without_a_configuration_there_is_no_twin() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no configuration"):
        forward_flops(torch.nn.Linear(2, 2), {"input": torch.zeros(1, 2)})
    with torch.device("meta"):
        linear = torch.nn.Linear(2, 3, bias=False)
    assert forward_flops(linear, {"input": torch.zeros(5, 2)}) == 2 * 5 * 2 * 3


def test_nested_inputs_go_to_meta() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: dict[str, list[torch.Tensor]], scale: float) -> torch.Tensor:
            assert all(tensor.is_meta for tensor in x["all"])
            return x["all"][0] @ x["all"][1] * scale

    assert forward_flops(Sum(), {"x": {"all": [torch.zeros(2, 3), torch.zeros(3, 4)]}, "scale": 2.0}) == 2 * 2 * 3 * 4
