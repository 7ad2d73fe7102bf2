"""DeepCache against a second writing: the whole U-Net runs, and plain hooks put the kept deep feature back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines import PIPELINES
from torch import nn
from zoo import ZOO, samples_of

import spectrum_diffusion
from spectrum_diffusion import UnsupportedModelError
from spectrum_diffusion.core.flops import counting
from spectrum_diffusion.sites import denoisers, passes
from spectrum_diffusion.sites.deep import deep_modules

STEPS = 12
FULL = [0, 3, 6, 9]


def meeting_place(unet: nn.Module, branch: int) -> nn.Module:
    """The first module outside: the convolution of the upper branch that meets skip connection ``branch``."""
    convolutions = [resnet for block in unet.up_blocks for resnet in block.resnets]
    return convolutions[len(convolutions) - 1 - branch]


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("name", ["sdxl", "sdxl-dpmpp", "sdxl-ddim"])
def test_equal_to_the_second_writing(name: str, branch: int) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "deepcache", branch=branch) as handle:
        ours = torch.as_tensor(entry.call(pipe, steps=STEPS))
        summary = handle.summary()
    assert summary.evaluated == FULL
    assert all((b.evaluated, b.partial) == (4, 8) for b in summary.branches.values())
    kept: list[torch.Tensor] = []
    step = [0]

    def keep(module: nn.Module, args: Any) -> Any:
        # Its input is the upper branch beside the skip connection, which is this step's own.
        value, *rest = args
        deep = value.shape[1] - skips(pipe.unet, branch)
        if step[0] in FULL:
            kept[:] = [value[:, :deep].clone()]
        return (torch.cat([kept[0], value[:, deep:]], dim=1), *rest)

    hook = meeting_place(pipe.unet, branch).register_forward_pre_hook(keep)
    count = pipe.unet.register_forward_hook(lambda *_: step.__setitem__(0, step[0] + 1))
    theirs = torch.as_tensor(entry.call(pipe, steps=STEPS))
    hook.remove()
    count.remove()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, torch.as_tensor(entry.call(pipe, steps=STEPS)), rtol=1e-4, atol=1e-5)


def skips(unet: nn.Module, branch: int) -> int:
    """Channels of skip connection ``branch``."""
    channels = [unet.config.block_out_channels[0]]
    for block, width in zip(unet.down_blocks, unet.config.block_out_channels, strict=True):
        channels += [width] * (len(block.resnets) + bool(block.downsamplers))
    return channels[branch]


def test_deeper_branches_cost_more() -> None:
    entry = PIPELINES["sdxl"]
    pipe = entry.build()
    costs = []
    for branch in range(3):
        with spectrum_diffusion.enable(pipe, "deepcache", branch=branch, flops=True) as handle:
            entry.call(pipe, steps=STEPS)
            flops = handle.summary().flops
            assert flops is not None
            costs.append(flops.evaluations)
    assert 4 < costs[0] < costs[1] <= costs[2] < STEPS


UNETS = [name for name, entry in ZOO.items() if entry.available and name.endswith(("UNet", "Model")) and "UNet" in name]


@pytest.mark.parametrize("name", UNETS)
def test_every_u_net_replays_or_is_refused_by_name(name: str) -> None:
    model, entry = ZOO[name].build(), ZOO[name]
    with torch.no_grad():
        plain = samples_of(model(**entry.inputs(seed=0)))
    try:
        handle = spectrum_diffusion.enable(model, "deepcache")
    except UnsupportedModelError as refusal:
        message = str(refusal)
        handle = None
    if handle is None:
        assert name in message
        assert "spectrum" in message
        return
    deepest, before = deep_modules(model, 0)
    ran: list[nn.Module] = []
    for module in (deepest, *before):
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
    with torch.no_grad(), handle.run(total_steps=2) as loop:
        for step in range(2):
            loop.step(step)
            ran.clear()
            replayed = samples_of(model(**entry.inputs(seed=0)))
    assert ran == []
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_nothing_of_a_stand_in_reaches_the_output(name: str, branch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = PIPELINES[name]
    pipe = entry.build()
    with spectrum_diffusion.enable(pipe, "deepcache", branch=branch):
        ours = torch.as_tensor(entry.call(pipe, steps=STEPS))
        plain = passes._stand_in

        def poisoned(leaf: Any, call: Any) -> Any:
            value = plain(leaf, call)
            return torch.full_like(value, torch.nan) if isinstance(value, torch.Tensor) else value

        monkeypatch.setattr(passes, "_stand_in", poisoned)
        assert torch.equal(torch.as_tensor(entry.call(pipe, steps=STEPS)), ours)


def test_cost_of_a_skipped_step_is_that_of_the_outermost_layers() -> None:
    """Branch 0: the first and the last convolution, the time embedding, and the last layer of the last block."""
    entry = PIPELINES["sdxl"]
    pipe = entry.build()
    unet = pipe.unet
    ran: dict[nn.Module, int] = {}
    last = unet.up_blocks[-1]
    outermost = [unet.conv_in, unet.time_embedding, unet.add_embedding, last.resnets[-1], unet.conv_out]
    outermost += list(last.attentions[-1:]) if hasattr(last, "attentions") else []

    def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch.no_grad(), counting() as counter:
            module.forward(*args, **kwargs)
        ran[module] = counter.get_total_flops()

    hooks = [module.register_forward_hook(count, with_kwargs=True) for module in outermost]
    entry.call(pipe, steps=1)
    for hook in hooks:
        hook.remove()
    assert len(ran) == len(outermost)
    with spectrum_diffusion.enable(pipe, "deepcache", flops=True) as handle:
        entry.call(pipe, steps=STEPS)
        (trace,) = handle._traces.values()
        costs = {call.step: call.flops for call in trace.calls}
    assert {cost for step, cost in costs.items() if step not in FULL} == {sum(ran.values())}
    assert min(costs[step] for step in FULL) > 2 * sum(ran.values())


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_what_runs_on_a_skipped_step(name: str, branch: int) -> None:
    """What makes the first ``branch`` + 1 skip connections, and as many layers at the end."""
    entry = PIPELINES[name]
    pipe = entry.build()
    downs, ups = pipe.unet.down_blocks, pipe.unet.up_blocks
    makers = [module for block in downs for module in (*block.resnets, *(block.downsamplers or ()))]
    takers = [module for block in ups for module in block.resnets]
    middle = list(pipe.unet.mid_block.resnets)
    ran: list[nn.Module] = []
    steps: dict[int, list[nn.Module]] = {}

    def on_step(step: int, *_: Any) -> None:
        steps[step] = ran.copy()
        ran.clear()

    hooks = [m.register_forward_pre_hook(lambda m, _: ran.append(m)) for m in (*makers, *middle, *takers)]
    with spectrum_diffusion.enable(pipe, "deepcache", branch=branch, on_step=on_step):
        entry.call(pipe, steps=STEPS)
    for hook in hooks:
        hook.remove()
    assert steps[0] == [*makers, *middle, *takers]
    assert steps[1] == steps[2] == [*makers[:branch], *takers[len(takers) - 1 - branch :]]


def test_branch_too_deep_and_no_u_net() -> None:
    with pytest.raises(UnsupportedModelError, match=r"branch=99 is too deep.*0 …"):
        spectrum_diffusion.enable(PIPELINES["sdxl"].build(), "deepcache", branch=99)
    with pytest.raises(UnsupportedModelError, match=r"FluxTransformer2DModel.*UNet2DConditionModel"):
        spectrum_diffusion.enable(PIPELINES["flux"].build(), "deepcache")


def test_compiled_blocks_are_refused() -> None:
    pipe = PIPELINES["sdxl"].build()
    for block in denoisers.main_blocks(pipe.unet):
        block.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"blocks of unet are compiled.*spectrum"):
        spectrum_diffusion.enable(pipe, "deepcache")
