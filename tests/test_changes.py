"""What changes after ``enable``: the result is that of the change made first, or a refusal that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from torch import nn

import spectrum_diffusion
from spectrum_diffusion import SpectrumError, UnsupportedModelError
from spectrum_diffusion.core import schedule
from spectrum_diffusion.sites import denoiser as standing
from spectrum_diffusion.sites.interceptor import SLOT, Interceptor

STEPS = 8
COEFFICIENTS = {"coefficients": [1.0, 0.0], "threshold": 0.5}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "last_block": ("paper", {"warmup": 2}),
    "output": ("paper", {"warmup": 2, "site": "output"}),
    "module": ("fora", {}),
    "residual": ("teacache", COEFFICIENTS),
    "first_block": ("first-block-cache", {"threshold": 0.5}),
    "tokens": ("toca", {"interval": 2}),
    "output_residual": ("easycache", {"warmup": 2, "threshold": 0.5}),
    "observed": ("diffusers:fbc", {"threshold": 0.5}),
    "corrected": ("spectrum", {"evaluated": (0, 2, 4, 5)}),
    "sampler": ("spectrum", {"evaluated": (0, 2, 4, 5), "site": "sampler"}),
}


def add_adapter(pipe: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(1)
    targets = ["proj_out", "proj_mlp", "to_q", "net.0.proj"]
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def fuse_adapter(pipe: Any) -> None:
    add_adapter(pipe)
    pipe.transformer.fuse_lora()


def quantize(pipe: Any) -> None:
    torch.ao.quantization.quantize_dynamic(pipe.transformer, {nn.Linear}, dtype=torch.qint8, inplace=True)


def remove_adapter(pipe: Any) -> None:
    pipe.transformer.unload_lora()


def exchange_block(pipe: Any) -> None:
    pipe.transformer.transformer_blocks[0] = build_again().transformer_blocks[1]


def exchange_tail(pipe: Any) -> None:
    pipe.transformer.norm_out = build_again().norm_out


def exchange_submodule(pipe: Any) -> None:
    pipe.transformer.single_transformer_blocks[0].proj_out = build_again().single_transformer_blocks[0].proj_out


def exchange_list(pipe: Any) -> None:
    pipe.transformer.transformer_blocks = nn.ModuleList(list(pipe.transformer.transformer_blocks)[:1])


def exchange_model(pipe: Any) -> None:
    pipe.transformer = build_again()


def compile_wrapped(pipe: Any) -> None:
    blocks = pipe.transformer.transformer_blocks
    blocks[0] = torch.compile(blocks[0], fullgraph=True, backend="eager")


def compile_in_place(pipe: Any) -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")


EXCHANGES = [exchange_block, exchange_tail, exchange_submodule, exchange_list, exchange_model]
CHANGES = [add_adapter, fuse_adapter, quantize, *EXCHANGES]
COMPILATIONS = [compile_wrapped, compile_in_place]


def build_again() -> Any:
    model = PIPELINES["flux"].build().transformer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    return model


def outcome(pipe: Any) -> torch.Tensor | str:
    try:
        return PIPELINES["flux"].call(pipe, steps=STEPS)
    except SpectrumError as error:
        return str(error)


def changed_first(change: Callable[[Any], None], site: str) -> torch.Tensor | str:
    pipe = PIPELINES["flux"].build()
    change(pipe)
    method, options = METHODS[site]
    try:
        spectrum_diffusion.enable(pipe, method, **options)
    except SpectrumError as error:
        return str(error)
    return outcome(pipe)


def same(first: torch.Tensor | str, second: torch.Tensor | str) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    return torch.equal(first, second)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")
@pytest.mark.parametrize("after_a_call", [False, True])
@pytest.mark.parametrize("change", [*CHANGES, *COMPILATIONS], ids=lambda change: change.__name__)
@pytest.mark.parametrize("site", METHODS)
def test_a_change_after_enable_is_as_one_before(site: str, change: Callable[[Any], None], after_a_call: bool) -> None:
    if change in (add_adapter, fuse_adapter):
        pytest.importorskip("peft")
    pipe = PIPELINES["flux"].build()
    method, options = METHODS[site]
    spectrum_diffusion.enable(pipe, method, **options)
    if after_a_call:
        outcome(pipe)
    change(pipe)
    assert same(outcome(pipe), changed_first(change, site))
    spectrum_diffusion.disable(pipe)
    assert not any(isinstance(m.__dict__.get(SLOT), Interceptor) for m in pipe.transformer.modules())


@pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")
@pytest.mark.parametrize("change", [add_adapter, quantize, exchange_block], ids=lambda change: change.__name__)
@pytest.mark.parametrize("site", METHODS)
def test_a_change_in_the_middle_of_a_call_spoils_neither_it_nor_the_next(
    site: str, change: Callable[[Any], None]
) -> None:
    if change is add_adapter:
        pytest.importorskip("peft")
    entry, (method, options) = PIPELINES["flux"], METHODS[site]
    pipe = entry.build()
    spectrum_diffusion.enable(pipe, method, **options)

    def midway(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            change(pipe)
        return tensors

    with contextlib.suppress(SpectrumError):  # a refusal by name is as good
        assert torch.isfinite(entry.call(pipe, steps=STEPS, callback_on_step_end=midway)).all()
    assert same(outcome(pipe), changed_first(change, site))


@pytest.mark.parametrize("site", METHODS)
def test_an_adapter_that_was_removed_leaves_no_trace(site: str) -> None:
    pytest.importorskip("peft")
    method, options = METHODS[site]
    pipe = PIPELINES["flux"].build()
    spectrum_diffusion.enable(pipe, method, **options)
    expected = outcome(pipe)
    add_adapter(pipe)
    changed = outcome(pipe)
    assert not same(changed, expected)
    remove_adapter(pipe)
    assert same(outcome(pipe), expected)


def test_an_adapter_in_the_deep_part_of_a_unet() -> None:
    peft = pytest.importorskip("peft")
    entry = PIPELINES["sd15"]

    def adapted(pipe: Any) -> Any:
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
        pipe.unet.add_adapter(config)
        return pipe

    first, pipe = adapted(entry.build()), entry.build()
    spectrum_diffusion.enable(first, "deepcache")
    expected = entry.call(first, steps=STEPS)
    spectrum_diffusion.enable(pipe, "deepcache")
    entry.call(pipe, steps=STEPS)
    assert torch.equal(entry.call(adapted(pipe), steps=STEPS), expected)


def test_a_wrapper_that_the_table_does_not_know_is_refused() -> None:
    peft = pytest.importorskip("peft")
    pipe = PIPELINES["flux"].build()
    spectrum_diffusion.enable(pipe, "fora")
    pipe.transformer = peft.get_peft_model(pipe.transformer, peft.LoraConfig(r=2, target_modules=["to_q"])).eval()
    with pytest.raises(UnsupportedModelError, match="PeftModel"):
        PIPELINES["flux"].call(pipe, steps=STEPS)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    calls: list[str] = []
    function = getattr(module, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapper)
    return calls


def test_another_packages_cache_is_put_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPELINES["flux"].build()
    installed = counted(monkeypatch, type(pipe.transformer), "enable_cache")
    spectrum_diffusion.enable(pipe, "diffusers:fbc", threshold=0.5)
    for _ in range(3):
        outcome(pipe)
    assert len(installed) == 1
    exchange_block(pipe)
    outcome(pipe)
    assert len(installed) == 2


@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_enable_resolves_once_and_a_generation_only_compares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    sites = counted(monkeypatch, standing, "make_site")
    conflicts = counted(monkeypatch, spectrum_diffusion.recipe, "refuse_conflicts")
    schedules = counted(monkeypatch, schedule, "adaptive")
    for _ in range(2):  # the second replaces the first
        spectrum_diffusion.enable(pipe, "paper", warmup=2)
    handle = spectrum_diffusion.enable(pipe, "fora", warmup=2)
    models = len(handle.models)
    assert len(sites) == len(conflicts) == 3 * models
    assert not schedules
    for steps in (50, 20, 50):
        schedules.clear()
        entry.call(pipe, steps=steps)
        assert len(schedules) == 1
    assert len(sites) == len(conflicts) == 3 * models
