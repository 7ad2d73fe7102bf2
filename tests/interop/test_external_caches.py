"""Other packages' caches: their results are their own, their counts are right, and nothing of them stays."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from aborts import AbortError, state_of
from pipelines import PIPELINES, PipelineEntry
from torch import nn
from typer.testing import CliRunner

import spectrum_diffusion
from spectrum_diffusion import (
    METHODS,
    ConflictError,
    Handle,
    InvalidOptionError,
    SpectrumWarning,
    UnsupportedModelError,
    load_default_pipeline,
    make_method,
)
from spectrum_diffusion.cli.app import app
from spectrum_diffusion.interop import EXTERNAL_CACHES

try:
    import cache_dit
except ImportError:
    cache_dit = None

STEPS = 12
FAST = {"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": 0.6}
OPTIONS: dict[str, dict[str, Any]] = {
    "diffusers:fbc": {"threshold": 0.3},
    "diffusers:magcache": {"mag_ratios": [1.0, *[0.99] * (STEPS - 1)], "num_inference_steps": STEPS},
    "diffusers:taylorseer": {"cache_interval": 3, "taylor_factors_dtype": "float32"},
    "diffusers:fastercache": {"tensor_format": "BFCHW"},
    "diffusers:pab": {"spatial_attention_block_skip_range": 2},
    "diffusers:seacache": {"threshold": 10.0},
    "diffusers:text-kv": {},
    **{name: FAST for name in EXTERNAL_CACHES if name.startswith("cache-dit")},
}
CACHES = {
    **{cache: ["flux", "wan"] for cache in EXTERNAL_CACHES},
    "diffusers:fastercache": ["cogvideox"],
    "diffusers:taylorseer": ["flux", "hunyuan-video"],
    "diffusers:magcache": ["flux", "flux-img2img", "wan", "wan22"],
    "diffusers:fbc": ["flux", "flux-true-cfg", "wan", "qwen-image"],
    "diffusers:seacache": ["wan"],
    "diffusers:text-kv": ["flux"],
    "cache-dit:dbcache": ["flux", "flux-img2img", "wan", "wan22", "sd3", "hunyuan-video", "qwen-image"],
}
"""Pipelines on which the caches do something; text keys are cached for one model that isn't here."""

needs_cache_dit = pytest.mark.skipif(cache_dit is None, reason="cache-dit is not installed: pip install cache-dit")
every_cache = pytest.mark.parametrize(
    "cache", [pytest.param(n, marks=needs_cache_dit if n.startswith("cache-dit") else ()) for n in EXTERNAL_CACHES]
)
every_pair = pytest.mark.parametrize(
    ("cache", "name"),
    [
        pytest.param(cache, name, marks=needs_cache_dit if cache.startswith("cache-dit") else ())
        for cache, names in CACHES.items()
        for name in names
    ],
)
pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning", "ignore:torch.meshgrid")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Both packages say a lot at each enabling."""
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
    yield
    diffusers.utils.logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True)
def classes_stay_as_they_are() -> Iterator[None]:
    """cache-dit patches the class of a pipeline, for every pipeline of that class."""
    before = {cls: dict(vars(cls)) for cls in {entry.pipeline for entry in PIPELINES.values()}}
    yield
    assert before == {cls: dict(vars(cls)) for cls in before}


def enable_by_hand(pipe: Any, cache: str, **options: Any) -> None:
    """What a user writes without this library."""
    if cache.startswith("cache-dit"):
        config, *calibrator = (getattr(cache_dit, name) for name in METHODS[cache].configs)
        calibrators = [calibrator[0]()] if calibrator else [None]
        cache_dit.enable_cache(pipe, cache_config=config(**options), calibrator_config=calibrators[0])
        return
    config = getattr(diffusers.hooks, METHODS[cache].configs[0])
    if cache in ("diffusers:pab", "diffusers:fastercache"):
        options["current_timestep_callback"] = lambda: pipe.current_timestep
    if "taylor_factors_dtype" in options:
        options["taylor_factors_dtype"] = getattr(torch, options["taylor_factors_dtype"])
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).enable_cache(config(**options))


def disable_by_hand(pipe: Any, cache: str) -> None:
    if cache.startswith("cache-dit"):
        cache_dit.disable_cache(pipe)
        return
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).disable_cache()


def count_layers(model: nn.Module) -> list[int]:
    """Hooks that note how many linear layers of the blocks ran in each call of the model."""
    calls: list[int] = []

    def began(*_: Any) -> None:
        calls.append(0)

    def ran(*_: Any) -> None:
        calls[-1] += 1

    model.register_forward_pre_hook(began)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.match(r"(single_)?(transformer_)?blocks\.", path):
            module.register_forward_hook(ran)
    return calls


def calls_of(summary: spectrum_diffusion.Summary) -> tuple[int, int]:
    """Whole calls and calls over all branches."""
    return sum(branch.evaluated for branch in summary.branches.values()), summary.calls


@every_pair
@pytest.mark.parametrize("called", [False, True])
def test_a_cache_that_was_disabled_does_not_matter(cache: str, name: str, called: bool) -> None:
    entry = PIPELINES[name]
    untouched, pipe = entry.build(), entry.build()
    enable_by_hand(pipe, cache, **OPTIONS[cache])
    if called:
        entry.call(pipe, steps=STEPS)
    disable_by_hand(pipe, cache)
    for method in ("paper", "first-block-cache"):
        spectrum_diffusion.enable(untouched, method)
        spectrum_diffusion.enable(pipe, method)
        assert torch.equal(entry.call(pipe, steps=STEPS), entry.call(untouched, steps=STEPS))


@every_pair
def test_results_are_the_packages_own_and_nothing_stays(cache: str, name: str) -> None:
    entry = PIPELINES[name]
    plain_pipe, pipe = entry.build(), entry.build()
    enable_by_hand(plain_pipe, cache, **OPTIONS[cache])
    expected = [torch.as_tensor(entry.call(plain_pipe, steps=STEPS, seed=seed)) for seed in (0, 1)]
    disable_by_hand(plain_pipe, cache)
    untouched = torch.as_tensor(entry.call(pipe, steps=STEPS))
    before, cls = state_of(pipe), type(pipe)
    handle = spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache])
    for seed in (0, 1, 0):
        assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS, seed=seed)), expected[seed])
    summary = handle.summary()
    assert calls_of(summary)[1] == sum(branch.steps for branch in summary.branches.values())
    if cache != "diffusers:text-kv":
        assert calls_of(summary)[0] < calls_of(summary)[1]
        assert not torch.equal(expected[0], untouched)
    spectrum_diffusion.disable(pipe)
    assert state_of(pipe) == before
    assert type(pipe) is cls
    assert not vars(pipe).keys() & {"_context_manager", "_context_kwargs"}
    assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS)), untouched)


@every_pair
def test_counts_are_those_of_hooks_on_the_layers(cache: str, name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    counted = [count_layers(getattr(pipe, denoiser)) for denoiser in entry.denoisers]
    with spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache]) as handle:
        entry.call(pipe, steps=STEPS)
        summary = handle.summary()
    calls = [call for calls in counted for call in calls]
    if cache != "diffusers:fastercache":  # leaves out half of the batch, which a count of calls doesn't see
        assert calls_of(summary) == (sum(call == max(calls) for call in calls), len(calls))
    assert sum(branch.forecast for branch in summary.branches.values()) == sum(call == 0 for call in calls)
    if len(counted) == 1:
        first = calls[:: entry.branches]
        assert summary.steps == len(first)
        if cache != "diffusers:fastercache":
            assert summary.evaluated == [step for step, call in enumerate(first) if call == max(calls)]
    assert summary.nfe == len(summary.evaluated)
    assert summary.speedup == summary.steps / summary.nfe
    assert not summary.fallbacks


@every_pair
def test_an_aborted_generation_leaves_no_state(cache: str, name: str) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    failing = [False]

    def on_step(step: int, *_: Any) -> None:
        if failing[0] and step == STEPS // 2:
            raise AbortError

    handle = spectrum_diffusion.enable(pipe, cache, on_step=on_step, **OPTIONS[cache])
    first, summary = torch.as_tensor(entry.call(pipe, steps=STEPS)), handle.summary().to_dict()
    failing[0] = True
    with pytest.raises(AbortError):
        entry.call(pipe, steps=STEPS, seed=1)
    failing[0] = False
    assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS)), first)
    assert handle.summary().to_dict() == summary
    spectrum_diffusion.disable(pipe)


def test_by_hand_an_aborted_generation_does_leave_state() -> None:
    """Why a cache is reset before each generation: diffusers does it at the end of a whole call only."""
    entry = PIPELINES["flux"]
    pipe = entry.build()
    enable_by_hand(pipe, "diffusers:magcache", **OPTIONS["diffusers:magcache"])
    first = entry.call(pipe, steps=STEPS)

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise AbortError

    with pytest.raises(AbortError):
        entry.call(pipe, steps=STEPS, seed=1, callback_on_step_end=fail)
    assert not torch.equal(entry.call(pipe, steps=STEPS), first)


@every_cache
def test_packages_and_versions_are_reported(cache: str) -> None:
    entry = PIPELINES["cogvideox"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache]) as handle:
        entry.call(pipe, steps=STEPS)
        summary = handle.summary()
    package = cache.partition(":")[0]
    record = json.loads(json.dumps(summary.to_dict()))
    assert record["package"] == {"name": package, "version": metadata.version(package)}
    assert record["history_bytes"] is None
    assert f"package    {package} {metadata.version(package)}" in str(summary)
    json.dumps(make_method(cache, **OPTIONS[cache]).options())


@every_cache
def test_flops_of_a_cache(cache: str) -> None:
    entry = PIPELINES["flux" if cache != "diffusers:fastercache" else "cogvideox"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, cache, flops=True, **OPTIONS[cache]) as handle:
        entry.call(pipe, steps=STEPS)
        summary = handle.summary()
    assert summary.flops is not None
    assert summary.nfe - 1e-9 <= summary.flops.evaluations <= STEPS


@pytest.mark.parametrize("cache", ["diffusers:fbc", pytest.param("cache-dit:dbcache", marks=needs_cache_dit)])
def test_enabling_again_replaces(cache: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    entry.call(pipe, steps=2)
    before = state_of(pipe)
    spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache])
    first = entry.call(pipe, steps=STEPS)
    spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache])
    assert torch.equal(entry.call(pipe, steps=STEPS), first)
    handle = spectrum_diffusion.enable(pipe, "reuse")
    entry.call(pipe, steps=STEPS)
    assert handle.summary().package is None
    spectrum_diffusion.enable(pipe, "diffusers:magcache", **OPTIONS["diffusers:magcache"])
    spectrum_diffusion.disable(pipe)
    assert state_of(pipe) == before


@pytest.mark.parametrize("cache", ["diffusers:fbc", pytest.param("cache-dit:dbcache", marks=needs_cache_dit)])
@pytest.mark.parametrize("method", ["spectrum", "diffusers:fbc", "cache-dit:dbcache"])
def test_a_cache_of_the_users_own_is_refused(cache: str, method: str) -> None:
    if method.startswith("cache-dit") and cache_dit is None:
        pytest.skip("cache-dit is not installed")
    pipe = PIPELINES["flux"].build()
    enable_by_hand(pipe, cache)
    with pytest.raises(ConflictError, match="cache"):
        spectrum_diffusion.enable(pipe, method)
    disable_by_hand(pipe, cache)


def test_the_cache_moves_to_a_swapped_component_and_leaves_the_old_one() -> None:
    entry = PIPELINES["flux"]
    pipe, other = entry.build(), entry.build()
    old, new = pipe.transformer, other.transformer
    before, other_before = state_of(pipe), state_of(other)
    with spectrum_diffusion.enable(pipe, "diffusers:fbc", threshold=0.5):
        expected = entry.call(pipe)
        pipe.transformer = new
        assert torch.equal(entry.call(pipe), expected)
        assert new.is_cache_enabled
        assert not old.is_cache_enabled
    assert state_of(other) == other_before
    pipe.transformer = old
    assert state_of(pipe) == before


def test_a_dropped_pipeline_frees_a_model_that_lives_on() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    model = pipe.transformer
    spectrum_diffusion.enable(pipe, "diffusers:fbc")
    del pipe
    assert not model.is_cache_enabled
    assert "forward" not in vars(model.transformer_blocks[0])


class NoMixin(nn.Module):
    """A denoiser of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.norm_out = nn.LayerNorm(4)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm_out(self.blocks[0](hidden_states))


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
@pytest.mark.parametrize("cache", [name for name in EXTERNAL_CACHES if name.startswith("diffusers")])
def test_a_model_without_the_mixin(cache: str, name: str) -> None:
    pipe = PIPELINES[name].build()
    before = state_of(pipe)
    with pytest.raises(UnsupportedModelError, match=r"has no enable_cache \(CacheMixin\) in diffusers .*spectrum"):
        spectrum_diffusion.enable(pipe, cache, **OPTIONS[cache])
    assert state_of(pipe) == before


def test_a_cache_that_refuses_is_undone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPELINES["sd3"].build()
    undone: list[Handle] = []
    detach = Handle._detach
    monkeypatch.setattr(Handle, "_detach", lambda handle: (undone.append(handle), detach(handle)))
    with pytest.raises(UnsupportedModelError, match="has no enable_cache"):
        spectrum_diffusion.enable(pipe, "diffusers:fbc")
    assert len(undone) == 1


@needs_cache_dit
def test_a_pipeline_that_cache_dit_does_not_know() -> None:
    pipe = PIPELINES["sdxl"].build()
    before, cls = state_of(pipe), type(pipe)
    with pytest.raises(UnsupportedModelError, match="not officially supported by cache-dit, please set BlockAdapter"):
        spectrum_diffusion.enable(pipe, "cache-dit:dbcache")
    assert (state_of(pipe), type(pipe)) == (before, cls)


def test_blocks_that_the_package_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second list of blocks is refused when hooks stand on the first already: they are taken off again."""
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

    pipe = PIPELINES["flux"].build()
    before = state_of(pipe)
    TransformerBlockRegistry._registry or TransformerBlockRegistry.get(type(pipe.transformer.transformer_blocks[0]))
    monkeypatch.delitem(TransformerBlockRegistry._registry, FluxSingleTransformerBlock)
    with pytest.raises(UnsupportedModelError, match="FluxSingleTransformerBlock"):
        spectrum_diffusion.enable(pipe, "diffusers:fbc")
    assert state_of(pipe) == before


def test_a_cache_that_fails_on_the_model_says_so() -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "diffusers:fastercache"):
        with pytest.raises(UnsupportedModelError, match="failed under diffusers:fastercache: IndexError"):
            entry.call(pipe)


def test_a_cache_that_never_acts_says_so() -> None:
    entry = PIPELINES["wan"]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "diffusers:taylorseer") as handle:
        with pytest.warns(SpectrumWarning, match="diffusers:taylorseer skipped nothing: it knows nothing"):
            entry.call(pipe)
    assert handle.summary().nfe == handle.summary().steps


@pytest.mark.parametrize(
    ("cache", "options", "message"),
    [
        ("diffusers:fbc", {"treshold": 1}, "diffusers:fbc has no option 'treshold' (did you mean 'threshold'?)"),
        ("diffusers:fbc", {"speedup": 2}, "diffusers:fbc has no option 'speedup': its options are threshold"),
        ("diffusers:pab", {"site": "output"}, "diffusers:pab has no option 'site'"),
    ],
)
def test_options_of_another_name(cache: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        make_method(cache, **options)


@pytest.mark.parametrize(
    ("cache", "options", "message"),
    [
        ("diffusers:magcache", {}, "`mag_ratios` must be provided for MagCache inference"),
        ("diffusers:seacache", {"threshold": -1}, "`threshold` must be non-negative, got -1"),
        ("diffusers:taylorseer", {"taylor_factors_dtype": "float"}, None),
        (
            "diffusers:taylorseer",
            {"taylor_factors_dtype": "floating"},
            "'floating' is not a dtype of torch",
        ),
    ],
)
def test_options_that_the_package_refuses(cache: str, options: dict[str, Any], message: str | None) -> None:
    pipe = PIPELINES["flux"].build()
    if message is None:
        spectrum_diffusion.enable(pipe, cache, **options)
        spectrum_diffusion.disable(pipe)
        return
    spectrum_diffusion.enable(pipe, "reuse")
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        spectrum_diffusion.enable(pipe, cache, **options)
    assert type(pipe).__dict__["_spectrum_handle"].method == make_method("reuse"), "nothing has changed"


def test_audit_is_of_our_own_forecasts() -> None:
    with pytest.raises(InvalidOptionError, match="audit=True measures this library's forecasts"):
        spectrum_diffusion.enable(PIPELINES["flux"].build(), "diffusers:fbc", audit=True)


def test_compiled_blocks_are_refused() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    with pytest.raises(UnsupportedModelError, match="compiled modules"):
        spectrum_diffusion.enable(pipe, "diffusers:fbc")


@pytest.fixture
def without_cache_dit(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_version = metadata.version

    def version(name: str) -> str:
        if name == "cache-dit":
            raise metadata.PackageNotFoundError(name)
        return installed_version(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.usefixtures("without_cache_dit")
def test_a_package_that_is_not_installed() -> None:
    pipe = PIPELINES["flux"].build()
    for options in ({}, {"Fn_compute_blocks": 1}):
        with pytest.raises(UnsupportedModelError, match=r"cache-dit is not installed: pip install 'spectrum-diffusion"):
            spectrum_diffusion.enable(pipe, "cache-dit:dbcache", **options)
    assert METHODS["cache-dit:dbcache"].defaults() == {}


def test_a_version_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(diffusers.hooks, "SeaCacheConfig")
    with pytest.raises(UnsupportedModelError, match=r"has no SeaCacheConfig: pip install -U diffusers"):
        spectrum_diffusion.enable(PIPELINES["wan"].build(), "diffusers:seacache")


def test_every_cache_of_diffusers_is_there() -> None:
    source = inspect.getsource(diffusers.CacheMixin.enable_cache)
    offered = set(re.findall(r"isinstance\(config, (\w+)\)", source))
    assert {
        config for name in EXTERNAL_CACHES if name.startswith("diffusers") for config in METHODS[name].configs
    } == offered


@needs_cache_dit
def test_every_cache_of_cache_dit_is_there() -> None:
    offered = {name for name in dir(cache_dit) if re.fullmatch(r"DB\w+Config|\w+CalibratorConfig", name)}
    known = {config for name in EXTERNAL_CACHES if name.startswith("cache-dit") for config in METHODS[name].configs}
    assert known == offered - {"CalibratorConfig"}


@every_cache
def test_defaults_are_the_packages_own(cache: str) -> None:
    method = make_method(cache)
    given = OPTIONS[cache] if cache == "diffusers:magcache" else {}
    for config in make_method(cache, **given).make_configs():
        plain = type(config)(**given)
        fields = vars(plain).keys() - {"mag_ratios"}
        assert {name: vars(config)[name] for name in fields} == {name: vars(plain)[name] for name in fields}
        assert vars(plain).keys() <= method.defaults().keys()


def own_loop(entry: PipelineEntry, model: nn.Module, handle: Any, on: Callable[[int], None] = lambda _: None) -> Any:
    """A loop of ones own over a Flux transformer."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 16, generator=generator)
    inputs = entry.family.inputs
    ids = torch.zeros(16, 3), torch.zeros(6, 3)
    with handle.run(total_steps=STEPS) as run, torch.no_grad():
        for step in range(STEPS):
            run.step(step)
            on(step)
            with model.cache_context("cond"):
                noise = model(
                    hidden_states=latents,
                    timestep=torch.tensor([1 - step / STEPS]),
                    guidance=torch.tensor([3.0]),
                    pooled_projections=inputs["pooled_prompt_embeds"],
                    encoder_hidden_states=inputs["prompt_embeds"],
                    img_ids=ids[0],
                    txt_ids=ids[1],
                ).sample
            latents = latents - noise / STEPS
    return latents


@pytest.mark.parametrize(
    "cache",
    ["diffusers:fbc", "diffusers:magcache", pytest.param("cache-dit:dbcache", marks=needs_cache_dit)],
)
def test_a_bare_model(cache: str) -> None:
    entry = PIPELINES["flux"]
    pipe = entry.build()
    model, before = pipe.transformer, state_of(pipe)
    handle = spectrum_diffusion.enable(model, cache, **OPTIONS[cache])
    first = own_loop(entry, model, handle)
    summary = handle.summary()
    assert 0 < summary.nfe < summary.steps == STEPS

    def fail(step: int) -> None:
        if step == 7:
            raise AbortError

    with pytest.raises(AbortError):
        own_loop(entry, model, handle, fail)
    assert torch.equal(own_loop(entry, model, handle), first)
    assert handle.summary().to_dict() == summary.to_dict()
    spectrum_diffusion.disable(model)
    assert [(path, vars_.keys() - {"_diffusers_hook"}) for path, vars_ in state_of(pipe)] == [
        (path, vars_.keys()) for path, vars_ in before
    ]


def test_hooks_of_the_users_own_stay() -> None:
    """What was on the model before, and what came after, is not the cache's."""
    from diffusers.hooks import HookRegistry, ModelHook

    entry = PIPELINES["flux"]
    pipe = entry.build()
    first, last = pipe.transformer.transformer_blocks
    HookRegistry.check_if_exists_or_initialize(first).register_hook(ModelHook(), "before")
    forward = first.forward
    spectrum_diffusion.enable(pipe, "diffusers:fbc")
    HookRegistry.check_if_exists_or_initialize(last).register_hook(ModelHook(), "after")
    entry.call(pipe)
    spectrum_diffusion.disable(pipe)
    assert first.forward is forward
    assert list(first._diffusers_hook.hooks) == ["before"]
    assert list(last._diffusers_hook.hooks) == ["after"]
    entry.call(pipe)


def test_compare_shows_a_cache_that_fails_beside_others(tmp_path: Path) -> None:
    rows = (
        "diffusers:fbc:threshold=0.2,diffusers:magcache,spectrum-blend:warmup=3,cache-dit:dbcache:Fn_compute_blocks=1"
    )
    command = ["compare", "red apple", "-o", str(tmp_path), "--steps", "6", "--methods", rows, "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "mag_ratios" in result.stderr
    json.loads(result.stdout)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    fbc, magcache, ours, dbcache = results["methods"][1:]
    assert fbc["method"] == "diffusers:fbc:threshold=0.2"
    assert fbc["package"] == {"name": "diffusers", "version": metadata.version("diffusers")}
    assert fbc["error"] is None
    assert fbc["nfe"] >= 1
    assert "`mag_ratios` must be provided" in magcache["error"]
    assert ours["package"] is None
    assert ours["psnr"] is not None
    if cache_dit is None:
        assert "cache-dit is not installed" in dbcache["error"]
    else:
        assert dbcache["package"] == {"name": "cache-dit", "version": metadata.version("cache-dit")}


@pytest.mark.usefixtures("without_cache_dit")
def test_the_list_of_methods_tells_versions_and_what_is_missing() -> None:
    methods = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)["methods"]
    packages = {row["name"]: row["package"] for row in methods}
    assert packages["diffusers:fbc"] == f"diffusers {metadata.version('diffusers')}"
    assert packages["cache-dit:dbcache"] == "cache-dit: not installed"
    assert packages["spectrum"] is None
    table = " ".join(CliRunner().invoke(app, ["methods"]).stdout.split())
    assert "not installed" in table


@pytest.mark.parametrize("cache", ["diffusers:taylorseer", pytest.param("cache-dit:dmd", marks=needs_cache_dit)])
def test_the_shipped_model(cache: str) -> None:
    pipe, other = load_default_pipeline(), load_default_pipeline()
    options = {} if cache.startswith("diffusers") else {"Fn_compute_blocks": 1}
    enable_by_hand(other, cache, **options)

    def draw(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        return torch.as_tensor(pipe("red apple", num_inference_steps=20, generator=generator, output_type="pt").images)

    with spectrum_diffusion.enable(pipe, cache, **options) as handle:
        assert torch.equal(draw(pipe), draw(other))
        summary = handle.summary()
    assert 0 < summary.nfe < summary.steps == 20
    disable_by_hand(other, cache)
