"""The table of denoisers, held against every class: plain hooks written here record, skip and replay."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from zoo import VARIANTS, ZOO, samples_of

from spectrum_diffusion.errors import UnsupportedModelError
from spectrum_diffusion.sites import denoisers
from spectrum_diffusion.sites.denoisers import (
    DENOISERS,
    DenoiserRow,
    find_denoiser_classes,
    register_denoiser,
    resolve,
    row_for,
)

ALL = {**ZOO, **VARIANTS}
OUTPUT_ONLY = {"UNet1DModel/no out block", "UNet2DModel/skip sample"}

# What a model's own forward takes out of a block and calls after the blocks, as part of its final modulation.
CALLED_BY_THE_MODEL = {"DiTTransformer2DModel": "transformer_blocks.0.norm1.emb"}
# What a model runs between the blocks: it runs on a skipped step too, in vain, and costs next to nothing.
BETWEEN_BLOCKS = {
    "Cosmos3OmniTransformer": {"norm"},
    "RFD4ProteinaTransformer": {"s_cycle_norm", "s_cycle_proj", "z_cycle_norm", "z_cycle_proj"},
    "UVit2DModel": {
        "project_to_hidden_norm",
        "project_to_hidden",
        "project_from_hidden_norm",
        "project_from_hidden",
    },
}
# Where the model adds something to the last block's output before the tail: the feature has it in.
ADDED_AFTER_THE_LAST_BLOCK = {
    "ConsisIDTransformer3DModel",
    "FluxTransformer2DModel/controlnet",
    "LongCatAudioDiTTransformer",
}
# Lists of modules that are embeddings, not blocks.
EMBEDDINGS = {"caption_projection"}

Outputs = dict[nn.Module, list[Any]]  # of each block, call by call, in the order of the first calls


class Probe:
    """Records a denoiser's feature, and runs it with a given feature and without blocks, by its row."""

    def __init__(self, name: str) -> None:
        self.entry = ALL[name]
        self.model = self.entry.build()
        row = row_for(self.model)
        assert row is not None
        self.row = row
        self.blocks, self.tails = resolve(self.model, row)

    def record(self, batch: int = 1, seed: int = 0) -> tuple[list[torch.Tensor], list[Any], Outputs]:
        """The output's samples, the tails' features (None where one did not run) and the blocks' outputs."""
        features: dict[nn.Module, torch.Tensor] = {}
        outputs: Outputs = defaultdict(list)
        with ExitStack() as undo:
            for block in self.blocks:
                hook = block.register_forward_hook(lambda block, _, output: outputs[block].append(output))
                undo.callback(hook.remove)
            for tail in self.tails:
                undo.enter_context(_pre_hook(tail, lambda tail, first: features.update({tail: first.clone()})))
            samples = self.run(batch, seed)
        return samples, [features.get(tail) for tail in self.tails], outputs

    def replay(
        self, features: list[Any], outputs: Outputs | None = None, *, batch: int = 1, seed: int = 0
    ) -> tuple[list[torch.Tensor], dict[str, bool]]:
        """The output's samples when the tails read `features`; which modules ran, and whether NaN went in.

        With `outputs` the blocks are skipped: each call returns NaN in the structure of the recorded output,
        so that whatever else than the feature reached the output would show.
        """
        ran: dict[str, bool] = {}
        with ExitStack() as undo:
            for name, module in self.model.named_modules():
                undo.enter_context(_watched(module, name, ran))
            for tail, feature in zip(self.tails, features, strict=True):
                undo.enter_context(_pre_hook(tail, lambda _, first, feature=feature: feature))
            for block, recorded in (outputs or {}).items():
                undo.enter_context(_replaced_forward(block, recorded))
            samples = self.run(batch, seed)
        return samples, ran

    def run(self, batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
        with torch.no_grad():
            return samples_of(self.model(**self.entry.inputs(batch, seed)))

    def names(self, modules: Iterable[nn.Module]) -> set[str]:
        wanted = set(modules)
        return {name for name, module in self.model.named_modules() if module in wanted}


@contextmanager
def _watched(module: nn.Module, name: str, ran: dict[str, bool]) -> Iterator[None]:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        ran[name] = any(tensor.isnan().any() for tensor in _tensors((args, kwargs)))

    with module.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def _pre_hook(module: nn.Module, look: Callable[..., Any]) -> Iterator[None]:
    """`look(module, first input)` before the module runs; a tensor that it returns replaces that input."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = look(module, args[0])
            return ((new, *args[1:]), kwargs) if new is not None else None
        key = next(key for key, value in kwargs.items() if isinstance(value, torch.Tensor))
        new = look(module, kwargs[key])
        return (args, {**kwargs, key: new}) if new is not None else None

    with module.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def _replaced_forward(block: nn.Module, recorded: list[Any]) -> Iterator[None]:
    stand_ins = iter([_nan_like(output) for output in recorded])
    block.forward = lambda *args, **kwargs: next(stand_ins)
    try:
        yield
    finally:
        del block.forward


def _nan_like(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return torch.full_like(output, torch.nan)
    if isinstance(output, dict):
        return type(output)(**{key: _nan_like(value) for key, value in output.items()})
    return type(output)(map(_nan_like, output)) if isinstance(output, tuple | list) else output


def _tensors(value: Any) -> list[torch.Tensor]:
    return samples_of(tuple(value.values()) if isinstance(value, dict) else value)


def _equal(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(tensors) == len(others) and all(map(torch.equal, tensors, others))


@functools.cache
def _probe(name: str) -> Probe:
    return Probe(name)


@pytest.fixture
def probe(name: str) -> Probe:
    if not ALL[name].available:
        pytest.skip(f"{ALL[name].cls} is not in the installed diffusers")
    return _probe(name)


last_block = pytest.mark.parametrize("name", sorted(set(ALL) - OUTPUT_ONLY))
batches = pytest.mark.parametrize("batch", [1, 2])


@last_block
@batches
def test_recording_changes_no_bit(probe: Probe, name: str, batch: int) -> None:
    samples, features, _ = probe.record(batch)
    assert _equal(samples, probe.run(batch))
    assert all(sample.isfinite().all() for sample in samples)
    assert any(feature is not None for feature in features)


@last_block
@batches
def test_feature_alone_gives_the_output(probe: Probe, name: str, batch: int) -> None:
    samples, features, outputs = probe.record(batch)
    assert _equal(probe.replay(features, outputs, batch=batch)[0], samples)


@last_block
def test_skipping_equals_running_all_and_replacing_the_feature(probe: Probe, name: str) -> None:
    """At another step than the recorded one: embeddings and modulation are the new step's."""
    _, features, outputs = probe.record(seed=0)
    all_run, _ = probe.replay(features, seed=1)
    skipped, _ = probe.replay(features, outputs, seed=1)
    assert _equal(all_run, skipped)


@last_block
def test_no_module_in_a_block_runs_on_a_skipped_step(probe: Probe, name: str) -> None:
    _, features, outputs = probe.record()
    inside = probe.names(module for block in probe.blocks for module in block.modules() if module is not block)
    _, ran_evaluated = probe.replay(features, seed=1)
    _, ran_skipped = probe.replay(features, outputs, seed=1)
    called = CALLED_BY_THE_MODEL.get(probe.entry.cls, "-")
    assert {module for module in inside & set(ran_skipped) if not module.startswith(called)} == set()
    assert inside & set(ran_evaluated)


@last_block
def test_nothing_else_works_on_what_blocks_made(probe: Probe, name: str) -> None:
    """A list of blocks that the row forgot would either run on stand-ins, or be a list that runs."""
    _, features, outputs = probe.record()
    _, ran = probe.replay(features, outputs)
    on_stand_ins = {module for module, has_nan in ran.items() if has_nan} - probe.names(probe.blocks + probe.tails)
    assert on_stand_ins == BETWEEN_BLOCKS.get(probe.entry.cls, set())
    lists = {child for child, module in probe.model.named_children() if isinstance(module, nn.ModuleList)}
    rows = {path.rstrip("?") for path in probe.row.blocks}
    assert {module.split(".")[0] for module in ran} & lists - rows <= EMBEDDINGS


@last_block
def test_feature_is_the_last_output_of_the_blocks(probe: Probe, name: str) -> None:
    _, features, outputs = probe.record()
    last = list(outputs.values())[-2:]  # where two lists take turns, either may end
    written = torch.cat([tensor.flatten().float() for output in last for tensor in _tensors(output)])
    contained = [bool(torch.isin(feature.float(), written).all()) for feature in features if feature is not None]
    assert all(contained) == (name not in ADDED_AFTER_THE_LAST_BLOCK)


@last_block
def test_output_depends_on_the_feature(probe: Probe, name: str) -> None:
    """Every sample (picture, sound …) changes with the features, each feature changes some sample."""
    samples, features, outputs = probe.record()
    torch.manual_seed(0)
    moved = [feature if feature is None else feature + torch.randn_like(feature) for feature in features]
    assert not any(map(torch.equal, probe.replay(moved, outputs)[0], samples))
    for index, feature in enumerate(features):
        if feature is not None:
            alone = [*features[:index], moved[index], *features[index + 1 :]]
            assert not _equal(probe.replay(alone, outputs)[0], samples)


@last_block
def test_blocks_run_in_the_order_of_the_row(probe: Probe, name: str) -> None:
    """Lists may take turns, but each starts after those before it, and each member after the one before."""
    place = {block: index for index, block in enumerate(probe.record()[2])}
    starts = []
    for path in probe.row.blocks:
        module = denoisers.module_at(probe.model, probe.row, path)
        places = [place[block] for block in denoisers._members(module) if block in place]
        assert places == sorted(places)
        starts += places[:1]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", sorted(OUTPUT_ONLY))
def test_output_site_only_says_why(name: str) -> None:
    model = ALL[name].build()
    row = row_for(model)
    assert row.blocks == () == row.tail
    assert row.reason
    assert resolve(model, row) == ([], [])


def test_every_row_without_blocks_has_a_reason() -> None:
    assert [row.cls for row in DENOISERS.values() if not row.blocks and not row.reason] == []


def test_every_denoiser_class_has_a_row() -> None:
    missing = [name for name in find_denoiser_classes() if name not in DENOISERS]
    assert missing == [], f"add to _LAST_BLOCK in denoisers.py a row for {', '.join(missing)}"


def test_every_denoiser_class_is_in_the_zoo() -> None:
    missing = [name for name in sorted({*find_denoiser_classes(), *DENOISERS}) if name not in ZOO]
    assert missing == [], f"add to tests/zoo a tiny configuration of {', '.join(missing)}"


def test_the_rule_takes_denoisers_only() -> None:
    names = find_denoiser_classes()
    assert {"FluxTransformer2DModel", "UNet2DConditionModel", "UNetControlNetXSModel", "UVit2DModel"} <= set(names)
    assert [name for name in names if name.endswith("ControlNetModel") or "Autoencoder" in name] == []
    assert not set(names) & set(denoisers._NOT_DENOISERS)


# Registering


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])])
        self.heads = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        self.middle = None
        self.inner = nn.Module()
        self.inner.norm = nn.LayerNorm(2)
        self.scale = 1.0


class ToyChild(Toy):
    pass


@pytest.fixture(autouse=True)
def _no_registered_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "_registered", {})


@pytest.mark.parametrize("cls", [Toy, "Toy"])
def test_register_by_class_or_name(cls: type | str) -> None:
    row = register_denoiser(cls, blocks=["layers"], tail="heads.*")
    assert row == DenoiserRow("Toy", ("layers",), ("heads.*",))
    assert row_for(Toy()) == row == row_for(ToyChild())


def test_nearest_class_wins() -> None:
    base = register_denoiser(Toy, blocks="layers", tail="heads.*")
    child = register_denoiser(ToyChild, blocks="layers", tail="inner.norm")
    assert (row_for(Toy()), row_for(ToyChild())) == (base, child)


def test_registered_row_wins_over_the_built_in() -> None:
    model = ZOO["FluxTransformer2DModel"].build()
    row = register_denoiser("FluxTransformer2DModel", blocks="single_transformer_blocks", tail="norm_out")
    assert row_for(model) == row != DENOISERS["FluxTransformer2DModel"]


def test_output_site_only_can_be_registered() -> None:
    row = register_denoiser(Toy, reason="the blocks hold the state")
    assert row_for(Toy()) == row
    assert resolve(Toy(), row) == ([], [])


def test_unknown_class_has_no_row() -> None:
    assert row_for(Toy()) is None


def test_resolve_flattens_and_follows_dots() -> None:
    toy = Toy()
    blocks, tails = resolve(toy, DenoiserRow("Toy", ("stem", "layers", "middle", "gone?"), ("inner.norm",)))
    assert blocks == [toy.stem, toy.layers[0], *toy.layers[1]]
    assert tails == [toy.inner.norm]
    assert resolve(toy, DenoiserRow("Toy", ("layers",), ("heads.*",)))[1] == list(toy.heads.values())


def test_compiled_model_is_looked_into() -> None:
    toy = Toy()
    row = register_denoiser(Toy, blocks="layers", tail="inner.norm")
    compiled = torch.compile(toy)
    assert row_for(compiled) == row
    assert resolve(compiled, row) == resolve(toy, row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"blocks": "layers"}, "has blocks but no tail"),
        ({"tail": "heads.*"}, "has tail but no blocks"),
        ({}, "no blocks and no reason"),
        ({"blocks": "layers.*.0", "tail": "norm"}, "'layers.*.0', which is not a path to a module"),
        ({"blocks": ("layers", ""), "tail": "norm"}, "'', which is not a path to a module"),
        ({"blocks": [nn.Linear(1, 1)], "tail": "norm"}, "pass attribute names, not modules"),
        ({"blocks": 3, "tail": "norm"}, "has 3 in its blocks"),
        ({"blocks": "layers", "tail": None}, "has None in its tail"),
    ],
)
def test_rows_that_cannot_be(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        register_denoiser(Toy, **row)
    assert message in str(error.value)
    assert "Toy" in str(error.value)
    assert row_for(Toy()) is None


@pytest.mark.parametrize("cls", [Toy(), "not a name", None, ""])
def test_neither_class_nor_name(cls: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="pass the denoiser's class or its name"):
        register_denoiser(cls, blocks="layers", tail="norm")


@pytest.mark.parametrize(
    ("blocks", "tail", "message"),
    [
        ("lasers", "inner.norm", "has no module 'lasers'"),
        ("layers", "inner.norms", "has no module 'inner.norms'"),
        ("scale", "inner.norm", "has no module 'scale'"),
        ("layers", "heads", 'is a container of modules: write "heads.*"'),
        ("middle", "inner.norm", "no module at the blocks of its row"),
        ("layers", "middle", "no module at the tail of its row"),
    ],
)
def test_rows_that_do_not_fit(blocks: str, tail: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        resolve(Toy(), DenoiserRow("Toy", (blocks,), (tail,)))
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["LuminaNextDiT2DModel", "NucleusMoEImageTransformer2DModel"])
def test_models_of_the_zoo_have_no_uninitialized_weights(name: str) -> None:
    """These leave some for their checkpoint to set: random memory, sometimes NaN."""
    first, second = (ZOO[name].build().state_dict() for _ in range(2))
    for key, value in first.items():
        assert value.isfinite().all(), key
        assert torch.equal(value, second[key]), key
