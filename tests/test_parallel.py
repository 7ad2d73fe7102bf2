"""A denoiser that two processes share: methods that decide by the step agree with one process, others are refused."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines import PIPELINES
from torch import distributed, multiprocessing

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError, make_method
from spectrum_diffusion.interop import EXTERNAL_CACHES
from spectrum_diffusion.methods.first_block_cache import FirstBlockCache

STEPS = 8
STEADY: dict[str, dict[str, Any]] = {
    "spectrum": {"speedup": 2, "warmup": 2},
    "fora": {},
    "magcache": {"ratios": [1.0, *(0.99,) * 7]},
    "diffusers:taylorseer": {"cache_interval": 3},
}
"""Methods that decide by the step alone."""
ADAPTIVE: dict[str, dict[str, Any]] = {
    "teacache": {"coefficients": [1.0, 0.0], "threshold": 0.5},
    "first-block-cache": {},
    "easycache": {},
    "toca": {},
    "diffusers:fbc": {},
    "diffusers:seacache": {},
    "cache-dit:dbcache": {},
}
"""Methods that decide from the activations."""


def available(method: str) -> bool:
    return method not in EXTERNAL_CACHES or spectrum_diffusion.METHODS[method].available()


def share(pipe: Any) -> None:
    """Split the tokens over both processes; diffusers divides by the number of accelerators, which is 0 here."""
    torch.accelerator.device_count = lambda: 1
    pipe.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))


def sampled(pipe: Any, method: str, options: dict[str, Any]) -> Any:
    """The latents and the evaluated steps, or the message of the refusal."""
    try:
        handle = spectrum_diffusion.enable(pipe, method, **options)
        latents = PIPELINES["flux"].call(pipe, steps=STEPS)
    except UnsupportedModelError as error:
        return str(error)
    finally:
        spectrum_diffusion.disable(pipe)
    return latents, handle.summary().evaluated


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    store = f"file://{folder}/store"
    timeout = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    outcomes = {}
    for method, options in (STEADY | ADAPTIVE).items():
        if available(method):
            pipe = PIPELINES["flux"].build()
            share(pipe)
            outcomes[method] = sampled(pipe, method, options)
    pipe = PIPELINES["flux"].build()
    spectrum_diffusion.enable(pipe, "first-block-cache")
    share(pipe)
    with pytest.raises(UnsupportedModelError) as refusal:
        PIPELINES["flux"].call(pipe, steps=STEPS)
    outcomes["enabled before"] = str(refusal.value)
    torch.save(outcomes, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes saw, by method."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(one_of_two, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")
@pytest.mark.parametrize("method", STEADY)
def test_a_method_that_decides_by_the_step_agrees_with_one_process(method: str, outcomes: list[dict[str, Any]]) -> None:
    if not available(method):
        pytest.skip(f"{method} is not installed")
    latents, evaluated = sampled(PIPELINES["flux"].build(), method, STEADY[method])
    for shared_latents, shared_evaluated in (outcome[method] for outcome in outcomes):
        assert shared_evaluated == evaluated
        assert len(evaluated) < STEPS
        torch.testing.assert_close(shared_latents, latents, rtol=1e-4, atol=1e-4)
    assert torch.equal(outcomes[0][method][0], outcomes[1][method][0])


@pytest.mark.parametrize("method", [*ADAPTIVE, "enabled before"])
def test_a_method_that_decides_from_activations_is_refused(method: str, outcomes: list[dict[str, Any]]) -> None:
    if not available(method):
        pytest.skip(f"{method} is not installed")
    name = "first-block-cache" if method == "enabled before" else method
    for outcome in outcomes:
        assert outcome[method].startswith("transformer is split over several processes")
        assert name in outcome[method]


@dataclass(frozen=True, kw_only=True)
class OfOnesOwn(FirstBlockCache):
    def decider(self, total: int) -> Any:
        return super().decider(total)


def test_what_decides_from_content() -> None:
    assert not any(make_method(name, **STEADY[name]).decides_from_content for name in STEADY)
    assert OfOnesOwn().decides_from_content
