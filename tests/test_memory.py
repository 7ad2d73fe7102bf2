"""The memory that a method holds: estimated before the run, counted by the run, and measured by an allocator."""

from __future__ import annotations

import gc
import random
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import PIPELINES, PipelineEntry
from test_families import CASES as CASES_OF_FAMILIES

import spectrum_diffusion
from spectrum_diffusion.core.allocations import Allocations
from spectrum_diffusion.core.history import History, memory_of

STEPS = 14
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "output": ("spectrum", {}),
    "sampler": ("spectrum", {"site": "sampler"}),
    "last_block": ("spectrum", {"site": "last_block"}),
    "module": ("taylorseer", {}),
    "paper": ("paper", {}),
    "paper-output": ("paper", {"site": "output"}),
    "residual": ("teacache", {"coefficients": [1.0, 0.0], "threshold": 0.3}),
    "output_residual": ("easycache", {}),
    "first_block": ("first-block-cache", {}),
    "tokens": ("toca", {}),
    "deep": ("deepcache", {}),
    "magcache": ("magcache", {"ratios": [1.0] * STEPS}),
    "fewer-steps": ("fewer-steps", {"speedup": 2.0}),
}
SITES = ("output", "sampler", "last_block", "module")
CASES = [
    *(("flux", method) for method in METHODS if method != "deep"),
    *(("sdxl", method) for method in (*SITES, "deep")),
    *((name, method) for name in ("sd3", "wan22", "hunyuan-video", "qwen-image") for method in SITES),
]
LARGER = {"height": 64, "width": 64}
AUTOCAST = torch.autocast


def call_of(entry: PipelineEntry, **changes: Any) -> dict[str, Any]:
    return {**entry.family.inputs, **entry.arguments, **changes}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- estimated before the run ---


@pytest.mark.parametrize(("name", "method"), CASES)
def test_bytes_are_those_of_the_run(name: str, method: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    label, options = METHODS[method]
    handle = spectrum_diffusion.enable(pipe, label, **options)
    estimate = handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry))
    entry.call(pipe, steps=STEPS)
    assert estimate.history_bytes == handle.summary().history_bytes
    assert (estimate.history_bytes == 0) == (label == "fewer-steps")


@pytest.mark.parametrize("method", ["output", "sampler", "last_block"])
@pytest.mark.parametrize("name", ["mochi", "hunyuan15", "lumina2"])
def test_bytes_of_models_that_read_their_masks(name: str, method: str) -> None:
    case = CASES_OF_FAMILIES[name]
    pipe = case.build()
    label, options = METHODS[method]
    with spectrum_diffusion.enable(pipe, label, **options, evaluated=[0, 1, 3]) as handle:
        estimate = handle.memory_estimate(num_inference_steps=6, **case.call)
        case.sample(pipe, 6)
        assert estimate.history_bytes == handle.summary().history_bytes > 0
        assert estimate.summary.evaluated == handle.summary().evaluated


def test_what_depends_on_the_weights_values_is_refused() -> None:
    case = CASES_OF_FAMILIES["hidream"]
    pipe = case.build()
    with spectrum_diffusion.enable(pipe) as handle:
        with pytest.raises(
            spectrum_diffusion.UnsupportedModelError, match=r"HiDream\w+ does not run on the meta device"
        ):
            handle.memory_estimate(num_inference_steps=6, **case.call)
    assert torch.autocast is AUTOCAST


def test_bytes_by_hand() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    tensor = entry.call(pipe, steps=2)
    with spectrum_diffusion.enable(pipe, "reuse", site="output") as handle:
        assert handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry)).history_bytes == tensor.nbytes
    with spectrum_diffusion.enable(pipe, "paper", site="output", evaluated=range(7)) as handle:
        assert handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry)).history_bytes == 7 * tensor.nbytes


def test_size_frames_and_batch_count() -> None:
    entry = PIPELINES["wan"]
    pipe = entry.build()
    call = call_of(entry)
    for key in ("height", "width", "num_frames"):
        call.pop(key)
    with spectrum_diffusion.enable(pipe, "reuse") as handle:

        def kept(**size: int) -> int:
            return handle.memory_estimate(num_inference_steps=10, **call, **size).history_bytes

        base = kept(height=32, width=32, frames=9)
        assert kept(height=64, width=32, frames=9) == kept(height=32, width=64, frames=9) == 2 * base
        assert kept(height=32, width=32, frames=17) == base * 5 // 3
        assert kept(height=32, width=32, frames=9, batch=3) == 3 * base
        run = entry.call(pipe, steps=10, num_videos_per_prompt=3)
        assert run.shape[0] == 3
        assert handle.summary().history_bytes == 3 * base


def test_lower_precision_halves_the_bytes() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "paper") as handle:
        full = handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry)).history_bytes
    pipe.transformer.to(torch.bfloat16)
    half_call = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in call_of(entry).items()}
    with spectrum_diffusion.enable(pipe, "paper") as handle:
        assert handle.memory_estimate(num_inference_steps=STEPS, **half_call).history_bytes * 2 == full


def test_an_estimate_leaves_everything_as_it_was() -> None:
    entry = PIPELINES["sdxl-euler-ancestral"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe) as handle:
        before = entry.call(pipe, steps=STEPS)
        summary, state = handle.summary(), torch.get_rng_state()
        generator = torch.Generator().manual_seed(3)
        config, components = dict(pipe.config), dict(pipe.components)
        scheduler = dict(vars(pipe.scheduler))
        handle.memory_estimate(num_inference_steps=7, generator=generator, **call_of(entry))
        assert handle.summary() == summary
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
        assert torch.equal(torch.get_rng_state(), state)
        assert dict(pipe.config) == config
        assert all(pipe.components[name] is component for name, component in components.items())
        assert all(vars(pipe.scheduler)[name] is value for name, value in scheduler.items())
        assert torch.equal(entry.call(pipe, steps=STEPS), before)


def test_a_model_that_is_moved_by_hooks_stays_where_it_is() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    pipe.enable_model_cpu_offload(device="cpu")
    with spectrum_diffusion.enable(pipe, "paper") as handle:
        hook = pipe.transformer._hf_hook
        estimate = handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry))
        assert pipe.transformer._hf_hook is hook
        entry.call(pipe, steps=STEPS)
        assert handle.summary().history_bytes == estimate.history_bytes > 0


def test_what_cannot_be_known_is_refused_by_name() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe.transformer) as handle:
        with pytest.raises(spectrum_diffusion.UnsupportedModelError, match="memory_estimate needs a pipeline"):
            handle.memory_estimate(height=8, width=8)
    with spectrum_diffusion.enable(pipe) as handle:
        with pytest.raises(spectrum_diffusion.InvalidOptionError, match="FluxPipeline takes no frames"):
            handle.memory_estimate(height=8, width=8, frames=4)
    with spectrum_diffusion.enable(pipe, "diffusers:taylorseer") as handle:
        with pytest.raises(spectrum_diffusion.UnsupportedModelError, match="cache of another package"):
            handle.memory_estimate(height=8, width=8)


# --- measured by an allocator ---


def peak_of(function: Callable[[], Any]) -> int:
    with Allocations() as allocations:
        function()
    return allocations.peak


def test_allocations_count_what_lives() -> None:
    old = torch.zeros(1000)
    with Allocations() as allocations:
        view = old + 1
        kept = view[10:]
        del view
        assert allocations.live == 4000  # a view keeps the storage
        torch.zeros(500, dtype=torch.float64)
        old.add_(1)
        assert (allocations.live, allocations.peak) == (4000, 8000)
        del kept
        assert allocations.live == 0


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
@pytest.mark.parametrize("method", ["output", "sampler", "paper", "module"])
def test_peak_is_within_five_percent_of_the_measured_one(name: str, method: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    size = {"height": 16, "width": 16} if name == "sd3" else LARGER
    label, options = METHODS[method]
    entry.call(pipe, steps=2, **size)
    untouched = peak_of(lambda: entry.call(pipe, steps=STEPS, **size))
    with spectrum_diffusion.enable(pipe, label, **options) as handle:
        estimate = handle.memory_estimate(num_inference_steps=STEPS, **call_of(entry, **size))
        above = peak_of(lambda: entry.call(pipe, steps=STEPS, **size)) - untouched
    assert estimate.peak_bytes == pytest.approx(above, rel=0.05)


def test_features_that_a_site_copied_are_not_copied_again() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    entry.call(pipe, steps=2, **LARGER)
    untouched = peak_of(lambda: entry.call(pipe, steps=STEPS, **LARGER))
    with spectrum_diffusion.enable(pipe, "fora") as handle:
        above = peak_of(lambda: entry.call(pipe, steps=STEPS, **LARGER)) - untouched
        # One set: the old one is freed before the new one is recorded. A few bytes tell whether it is finite.
        assert above <= 1.001 * handle.summary().history_bytes


def test_an_evaluation_does_not_find_what_it_pushes_out() -> None:
    history = History(window=2)
    for step in range(3):
        history.append(step, (torch.zeros(5),))
    history.make_room()
    assert (history.steps, history.nbytes) == ([2], 20)
    history.make_room()
    assert history.steps == [2]
    everything = History()
    everything.append(0, (torch.zeros(5),))
    everything.make_room()
    assert len(everything) == 1


def test_storages_count_once() -> None:
    base = torch.zeros(10)
    assert sum(memory_of([base, base[2:], torch.zeros(3)]).values()) == 52
    on_meta = [torch.zeros(10, device="meta"), torch.zeros(10, device="meta")]
    assert sum(memory_of(on_meta).values()) == 80


# --- many generations ---


class StopError(Exception):
    """Ends a generation."""


def generate(entry: PipelineEntry, pipe: Any, chance: random.Random) -> tuple[dict[str, Any], torch.Tensor | None]:
    """A generation with a shape, steps and a seed by chance: what it was, and its latents unless it was ended."""
    call = {
        "height": chance.choice((8, 16)),
        "width": chance.choice((8, 16)),
        "steps": chance.randint(2, 14),
        "seed": chance.randrange(1000),
        "num_images_per_prompt": chance.choice((1, 2)),
    }
    end = chance.choice(("whole", "whole", "interrupted", "raises"))
    last = chance.randrange(call["steps"])

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == last:
            if end == "raises":
                raise StopError
            pipe._interrupt = True
        return tensors

    try:
        latents = entry.call(pipe, **call, **({} if end == "whole" else {"callback_on_step_end": stop}))
    except StopError:
        return call, None
    return call, latents if end == "whole" else None


def resident() -> int:
    """Bytes of the process in memory; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def run_many(count: int, method: str, options: dict[str, Any]) -> None:
    """Generate often: memory stays flat, and whole generations equal those of a new pipeline.

    A leak grows in every stretch of generations. What Python and pytest keep once, such as the source lines of a
    warning, shows in one of them.
    """
    entry = PIPELINES["flux"]
    pipe = entry.build()
    chance = random.Random(0)
    stretch = count // 4
    enable = partial(spectrum_diffusion.enable, method=method, **options)
    with enable(pipe) as handle:
        for _ in range(stretch):  # caches fill
            generate(entry, pipe, chance)
        tracemalloc.start()
        try:
            held = [settled()]
            for _ in range(3):
                compare_with_fresh(entry, pipe, handle, chance, stretch, enable)
                held.append(settled())
        finally:
            tracemalloc.stop()
    grown, swollen = (3 * min(after[i] - before[i] for before, after in pairwise(held)) for i in (0, 1))
    assert grown < 200_000, f"{grown} bytes of Python objects are left over after {3 * stretch} generations"
    assert swollen < 64 * 2**20, f"the process grew by {swollen} bytes in {3 * stretch} generations"


def settled() -> tuple[int, int]:
    """Bytes of Python objects and of the process, without what only waits to be collected."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0], resident()


def compare_with_fresh(
    entry: PipelineEntry,
    pipe: Any,
    handle: spectrum_diffusion.Handle,
    chance: random.Random,
    count: int,
    enable: Callable[[Any], spectrum_diffusion.Handle],
) -> None:
    """So many generations: some of the whole ones equal those of a new pipeline."""
    compared = 0
    for place in range(count):
        call, latents = generate(entry, pipe, chance)
        assert all(trace.held_bytes == 0 for trace in handle._traces.values())
        if latents is not None and place % max(1, count // 4) < 3:
            compared += 1
            fresh = entry.build()
            with enable(fresh):
                assert torch.equal(entry.call(fresh, **call), latents)
    assert compared


def test_forty_generations_leave_nothing_behind() -> None:
    run_many(40, "spectrum", {})


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("spectrum", {}), ("paper", {}), ("spectrum", {"site": "sampler"})])
def test_a_thousand_generations_leave_nothing_behind(method: str, options: dict[str, Any]) -> None:
    run_many(1000, method, options)
