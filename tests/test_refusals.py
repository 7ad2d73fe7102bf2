"""What is refused, with the message that names the way out; a refusal leaves the pipeline as it was."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from pipelines import PIPELINES
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import ConflictError, InvalidOptionError, SpectrumError, SpectrumWarning, UnsupportedModelError
from spectrum_diffusion.sites import denoisers

ENTRY = PIPELINES["flux"]


def state_of(pipe: Any) -> list[Any]:
    modules = [
        module for value in pipe.components.values() if isinstance(value, nn.Module) for module in value.modules()
    ]
    return [type(pipe), sorted(vars(pipe)), *(sorted(vars(module)) for module in modules)]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "spectrun"}, "did you mean 'spectrum'"),
    ({"method": "nothing like it"}, "choose one of spectrum, paper"),
    ({"method": None}, "method=None is unknown"),
    ({"method": 3}, "method=3 is unknown"),
    ({"warmpu": 3}, "no option 'warmpu' .did you mean 'warmup'"),
    ({"method": "reuse", "degree": 4}, "reuse has no option 'degree'"),
    ({"method": "taylor", "ridge": 0.1}, "taylor has no option 'ridge'"),
    ({"degree": 4}, "no option 'degree' .an option of paper, spectrum-blend."),
    ({"interval": 2}, "no option 'interval' .an option of paper, spectrum-blend, …."),
    (
        {"site": "last-block"},
        "site='last-block' is unknown .did you mean 'last_block'..: choose one of last_block, output, module, sampler",
    ),
    ({"site": None}, "site=None is unknown"),
    ({"method": "spectrum-blend", "interval": 0}, "interval=0 is out of range"),
    ({"method": "spectrum-blend", "interval": 2.5}, "interval=2.5 is not an integer"),
    ({"method": "spectrum-blend", "interval": True}, "interval=True is not an integer"),
    ({"method": "spectrum-blend", "interval": "2"}, "interval='2' is not an integer"),
    ({"warmup": 0}, "warmup=0 is out of range"),
    ({"warmup": -3}, "warmup=-3 is out of range"),
    ({"method": "spectrum-blend", "slope": -0.1}, "slope=-0.1 is out of range"),
    ({"method": "spectrum-blend", "slope": float("nan")}, "slope=nan is out of range"),
    ({"method": "spectrum-blend", "slope": float("inf")}, "slope=inf is out of range"),
    ({"method": "spectrum-blend", "slope": "steep"}, "slope='steep' is not a number"),
    ({"method": "spectrum-blend", "degree": -1}, "degree=-1 is out of range"),
    ({"method": "spectrum-blend", "degree": 1.5}, "degree=1.5 is not an integer"),
    ({"method": "spectrum-blend", "ridge": -0.1}, "ridge=-0.1 is out of range"),
    ({"method": "spectrum-blend", "ridge": None}, "ridge=None is not a number"),
    ({"method": "spectrum-blend", "blend": 1.5}, "blend=1.5 is out of range"),
    ({"method": "taylor", "order": -1}, "order=-1 is out of range"),
    ({"speedup": 0.5}, "speedup=0.5 is out of range"),
    ({"speedup": float("nan")}, "speedup=nan is out of range"),
    ({"speedup": "fast"}, "speedup='fast' is not a number"),
    ({"speedup": 2, "evaluated": [0, 1]}, "pass only one of them"),
    ({"evaluated": []}, "must start with step 0"),
    ({"evaluated": [1, 2]}, "must start with step 0"),
    ({"evaluated": [0, 2, 1]}, "must increase, but step 1 follows 2"),
    ({"evaluated": [0, 1, 1]}, "must increase, but step 1 follows 1"),
    ({"evaluated": [0, 1.5]}, "evaluated step=1.5 is not an integer"),
    ({"evaluated": 5}, "evaluated must be a list of step indices, got 5"),
    ({"evaluated": [0, -1]}, "evaluated step=-1 is out of range"),
    ({"on_step": 3}, "on_step=3 is not callable"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_option(options: dict[str, Any], message: str) -> None:
    pipe = ENTRY.build()
    before = state_of(pipe)
    with pytest.raises(InvalidOptionError, match=message) as seen:
        spectrum_diffusion.enable(pipe, **options)
    assert isinstance(seen.value, ValueError)
    assert state_of(pipe) == before


def test_wrong_option_keeps_what_was_enabled() -> None:
    pipe = ENTRY.build()
    handle = spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    expected = ENTRY.call(pipe, steps=6)
    with pytest.raises(InvalidOptionError):
        spectrum_diffusion.enable(pipe, warmup=0)
    assert torch.equal(ENTRY.call(pipe, steps=6), expected)
    assert handle.summary().method == "reuse"


AT_THE_CALL: list[tuple[dict[str, Any], str]] = [
    ({"speedup": 7}, "speedup=7 leaves 0 of 6 steps .* pass a speedup within 1"),
    ({"evaluated": [0, 1, 9]}, "names step 9, but the run has 6 steps"),
]


@pytest.mark.parametrize(("options", "message"), AT_THE_CALL)
def test_wrong_for_the_number_of_steps(options: dict[str, Any], message: str) -> None:
    pipe = ENTRY.build()
    plain = ENTRY.call(pipe, steps=6)
    before = state_of(pipe)
    handle = spectrum_diffusion.enable(pipe, **options)
    with pytest.raises(InvalidOptionError, match=message):
        ENTRY.call(pipe, steps=6)
    ENTRY.call(pipe, steps=100)
    assert handle.summary().steps == 100
    spectrum_diffusion.disable(pipe)
    assert state_of(pipe) == before
    assert torch.equal(ENTRY.call(pipe, steps=6), plain)


def train(pipe: Any) -> None:
    pipe.transformer.train()


def first_block_cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def attention_broadcast(pipe: Any) -> None:
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 1)
    )


def patched_instance(pipe: Any) -> None:
    pipe.transformer.forward = lambda *args, **kwargs: None


def marked(pipe: Any) -> None:
    pipe.transformer._is_cached = True


def compiled(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")


def wrapped(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


CONFLICTS: list[tuple[Callable[[Any], None], type[Exception], str]] = [
    (train, SpectrumError, r"transformer .* is in training mode: call \.eval"),
    (first_block_cache, ConflictError, r"call \.disable_cache"),
    (attention_broadcast, ConflictError, r"call \.disable_cache"),
    (patched_instance, ConflictError, "forward of transformer was replaced by test_refusals"),
    (marked, ConflictError, "cached by cache-dit .attribute _is_cached"),
    (compiled, UnsupportedModelError, r'compiled as a whole.*site="output".*compile_repeated_blocks'),
    (wrapped, UnsupportedModelError, r'compiled as a whole.*site="output".*compile_repeated_blocks'),
]


@pytest.mark.parametrize("when", ["before enable", "after enable"])
@pytest.mark.parametrize(("conflict", "error", "message"), CONFLICTS, ids=[c[0].__name__ for c in CONFLICTS])
def test_conflict(conflict: Callable[[Any], None], error: type[Exception], message: str, when: str) -> None:
    pipe = ENTRY.build()
    if when == "after enable":
        spectrum_diffusion.enable(pipe, "paper")
        conflict(pipe)
        with pytest.raises(error, match=message):
            ENTRY.call(pipe, steps=6)
    else:
        conflict(pipe)
        before = state_of(pipe)
        with pytest.raises(error, match=message):
            spectrum_diffusion.enable(pipe, "paper")
        assert state_of(pipe) == before


def test_forward_patched_on_the_class() -> None:
    pipe = ENTRY.build()
    cls = type(pipe.transformer)
    original = cls.forward

    def teacache_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    cls.forward = teacache_forward
    try:
        with pytest.raises(ConflictError, match=r"replaced by test_refusals\..*teacache_forward"):
            spectrum_diffusion.enable(pipe)
    finally:
        cls.forward = original
    spectrum_diffusion.enable(pipe)
    ENTRY.call(pipe, steps=6)


def test_cache_enabled_after_enable_can_be_removed_again() -> None:
    pipe = ENTRY.build()
    spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    expected = ENTRY.call(pipe, steps=6)
    first_block_cache(pipe)
    with pytest.raises(ConflictError, match="disable_cache"):
        ENTRY.call(pipe, steps=6)
    pipe.transformer.disable_cache()
    assert torch.equal(ENTRY.call(pipe, steps=6), expected)


class Unknown(nn.Module):
    """A denoiser that no table has."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.tail = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.block(x))


def test_unknown_class_and_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_registered", {})
    model, x = Unknown().eval(), torch.ones(1, 2)
    with pytest.raises(UnsupportedModelError, match=r'site="output".*register_denoiser\(Unknown'):
        spectrum_diffusion.enable(model, "paper")

    def nfe(**options: Any) -> int:
        with spectrum_diffusion.enable(model, "reuse", evaluated=[0], **options) as handle, torch.no_grad():
            with handle.run(total_steps=3) as run:
                for step in range(3):
                    run.step(step)
                    model(x)
            return handle.summary().nfe

    assert nfe(site="output") == 1
    spectrum_diffusion.register_denoiser(Unknown, blocks="block", tail="tail")
    assert nfe() == 1


def test_row_that_does_not_fit_leaves_what_was_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_registered", {})
    pipe = ENTRY.build()
    spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    expected = ENTRY.call(pipe, steps=6)
    spectrum_diffusion.register_denoiser("FluxTransformer2DModel", blocks="no_such_blocks", tail="norm_out")
    with pytest.raises(UnsupportedModelError, match="no_such_blocks"):
        spectrum_diffusion.enable(pipe)
    denoisers._registered.clear()
    assert torch.equal(ENTRY.call(pipe, steps=6), expected)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (None, "NoneType is neither a diffusers pipeline nor a torch.nn.Module: pass one of them"),
        (3, "int is neither"),
        (object(), "object is neither"),
        (torch.ones(1), "Tensor is neither"),
        ("flux", "'flux' is neither .* load it first"),
        ([], "list is neither .* pass its members one by one"),
        (
            ENTRY.pipeline,
            r"the class FluxPipeline is neither .* pass an instance, such as FluxPipeline\.from_pretrained",
        ),
        (nn.Linear, "the class Linear is neither"),
    ],
)
@pytest.mark.parametrize("site", ["last_block", "output"])
def test_neither_pipeline_nor_module(thing: Any, message: str, site: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        spectrum_diffusion.enable(thing, site=site)
    with pytest.raises(UnsupportedModelError, match=message):
        spectrum_diffusion.disable(thing)


def test_a_handle_is_not_what_is_disabled() -> None:
    pipe = ENTRY.build()
    handle = spectrum_diffusion.enable(pipe)
    assert repr(handle) == "<Handle of spectrum on FluxPipeline>"
    with pytest.raises(UnsupportedModelError, match=r"Handle is neither .* pass what was enabled, .* handle\.target"):
        spectrum_diffusion.disable(handle)
    spectrum_diffusion.disable(handle.target)
    assert repr(handle) == "<Handle of spectrum on FluxPipeline, disabled>"
    del pipe
    gc.collect()
    assert repr(handle) == "<Handle of spectrum on a target that no longer exists>"


class WithoutDenoiser(DiffusionPipeline):
    def __init__(self, vae: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, scheduler=scheduler)

    def __call__(self) -> None:
        """Nothing to call."""


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("last_block", 'no denoiser with a row in the table .* use site="output"'),
        (
            "output",
            r"no denoiser with a row in the table or the name transformer.* enable the bare denoiser with handle",
        ),
    ],
)
def test_a_pipeline_without_a_denoiser_is_told_what_is_left(site: str, message: str) -> None:
    pipe = ENTRY.build()
    with pytest.raises(UnsupportedModelError, match=message):
        spectrum_diffusion.enable(WithoutDenoiser(pipe.vae, pipe.scheduler), site=site)


def test_a_pipeline_that_calls_another_enabled_one() -> None:
    inner = ENTRY.build()

    class Outer(ENTRY.pipeline):  # type: ignore[name-defined, misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs)

    outer = Outer(**inner.components)
    spectrum_diffusion.enable(inner)
    spectrum_diffusion.enable(outer)
    with pytest.raises(ConflictError, match="a pipeline called another enabled pipeline that shares the denoiser"):
        ENTRY.call(outer, steps=6)
    spectrum_diffusion.disable(inner)
    ENTRY.call(outer, steps=6)


def test_two_runs_of_one_handle_in_one_thread() -> None:
    pipe = ENTRY.build()
    handle = spectrum_diffusion.enable(pipe.transformer)
    with handle.run(total_steps=6), pytest.raises(ConflictError, match=r"leave its handle\.run"):
        handle.run(total_steps=6).__enter__()


def test_summary_before_any_run() -> None:
    handle = spectrum_diffusion.enable(ENTRY.build())
    with pytest.raises(SpectrumError, match="nothing was generated since enable"):
        handle.summary()


def test_disable_is_harmless_and_enable_replaces() -> None:
    pipe = ENTRY.build()
    before = state_of(pipe)
    plain = ENTRY.call(pipe, steps=6)
    spectrum_diffusion.disable(pipe)
    first = spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    reused = ENTRY.call(pipe, steps=6)
    second = spectrum_diffusion.enable(pipe, "taylor", warmup=2)
    assert not torch.equal(ENTRY.call(pipe, steps=6), reused)
    assert (first.summary().method, second.summary().method) == ("reuse", "taylor")
    with first:
        pass  # it stands on nothing any more: leaving it disables nothing
    assert not torch.equal(ENTRY.call(pipe, steps=6), plain)
    spectrum_diffusion.disable(pipe)
    spectrum_diffusion.disable(pipe)
    assert torch.equal(ENTRY.call(pipe, steps=6), plain)
    assert state_of(pipe)[0] is before[0]


@pytest.mark.parametrize("name", ["flux", "wan22", "sdxl"])
def test_deleted_while_enabled_leaks_nothing(name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    handle = spectrum_diffusion.enable(pipe)
    entry.call(pipe, steps=6)
    dead = [weakref.ref(pipe), *(weakref.ref(getattr(pipe, denoiser)) for denoiser in entry.denoisers)]
    del pipe
    gc.collect()
    assert [ref() for ref in dead] == [None] * len(dead)
    assert handle.summary().steps == 6


def by_pickle(pipe: Any) -> Any:
    return pickle.loads(pickle.dumps(pipe))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
def test_copy_of_an_enabled_pipeline_is_plain(make_copy: Callable[[Any], Any]) -> None:
    pipe = ENTRY.build()
    plain = ENTRY.call(pipe, steps=6)
    spectrum_diffusion.enable(pipe, "reuse", warmup=2)
    accelerated = ENTRY.call(pipe, steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpectrumWarning)
        twin = make_copy(pipe)
        assert type(twin) is ENTRY.pipeline
        assert torch.equal(ENTRY.call(twin, steps=6), plain)
    assert torch.equal(ENTRY.call(pipe, steps=6), accelerated)


def run_twice(entry: Any, pipe: Any, steps: int) -> None:
    for _ in range(2):
        entry.call(pipe, steps=steps)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("sdxl-euler-ancestral", 10, "noise is added at each step .scheduler: EulerAncestralDiscreteScheduler"),
        ("sd15-lcm", 10, "noise is added at each step .scheduler: LCMScheduler"),
        ("flux", 4, "a run of 4 steps is evaluated whole"),
    ],
)
def test_warned_once(name: str, steps: int, message: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    spectrum_diffusion.enable(pipe)
    with pytest.warns(SpectrumWarning, match=message) as seen:
        run_twice(entry, pipe, steps)
    assert sum(issubclass(warning.category, SpectrumWarning) for warning in seen) == 1


@pytest.mark.parametrize("method", ["spectrum", "fora"])
@pytest.mark.parametrize("target", ["pipe", "pipe.transformer"])
def test_exit_while_enabled_is_silent(method: str, target: str) -> None:
    script = f"import spectrum_diffusion as s; pipe = s.load_default_pipeline(); s.enable({target}, {method!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Exception ignored" not in done.stderr


def test_the_default_pipeline_survives_pickle_in_another_process(tmp_path: Path) -> None:
    """Enabled or not: the copy is plain, keeps its call defaults and samples the same image."""
    pipe = spectrum_diffusion.load_default_pipeline()
    seeded = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    plain = pipe("red apple", **seeded).images
    spectrum_diffusion.enable(pipe)
    (tmp_path / "pickled").write_bytes(pickle.dumps((pipe, plain)))
    script = (
        "import pickle, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "pipe, plain = pickle.loads(Path('pickled').read_bytes())\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "image = pipe('red apple', num_inference_steps=3, output_type='latent', generator=generator).images\n"
        "print(type(pipe).__name__, torch.equal(image, plain), hasattr(pipe, '_spectrum_handle'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["FluxPipeline", "True", "False"]


@pytest.mark.parametrize("method", ["spectrum", "paper"])
def test_other_components_of_a_pipeline_are_no_denoisers(method: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
    for model, kind in ((ENTRY.build().vae, "an autoencoder"), (text.eval(), "a model of transformers")):
        with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} is {kind}, not a denoiser: pass the"):
            spectrum_diffusion.enable(model, method)
