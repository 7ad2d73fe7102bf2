"""What people combine it with: applied before enable, after it, or between two calls, the result is the same."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import diffusers as d
import pytest
import torch
from pipelines import PIPELINES, schedulers
from pipelines.families import _unet as tiny_unet
from pipelines.families import image, noise
from torch import distributed, nn

import spectrum_diffusion
from spectrum_diffusion import SpectrumError
from spectrum_diffusion.sites.interceptor import SLOT, Interceptor

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("fresh_dynamo")]

STEPS = 8
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "output": ("spectrum", {"evaluated": (0, 2, 4, 5)}),
    "sampler": ("spectrum", {"evaluated": (0, 2, 4, 5), "site": "sampler"}),
    "last_block": ("paper", {"warmup": 2}),
    "module": ("fora", {}),
}
at_every_site = pytest.mark.parametrize("site", METHODS)
Change = Callable[[Any], None]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def enable(pipe: Any, site: str) -> Any:
    method, options = METHODS[site]
    return spectrum_diffusion.enable(pipe, method, **options)


def outcome(pipe: Any, site: str | None, name: str, **call: Any) -> torch.Tensor | str:
    """The latents, or the refusal."""
    try:
        if site is not None:
            enable(pipe, site)
        return PIPELINES[name].call(pipe, steps=STEPS, **call)
    except SpectrumError as error:
        return str(error)


def check_every_order(name: str, change: Change, site: str, **call: Any) -> torch.Tensor | str:
    """The change before ``enable``, after it, and between two calls give the same; that result."""
    first, after, between = (PIPELINES[name].build() for _ in range(3))
    change(first)
    expected = outcome(first, site, name, **call)
    enable(after, site)
    change(after)
    enable(between, site)
    PIPELINES[name].call(between, steps=STEPS)
    change(between)
    for pipe in (after, between):
        result = outcome(pipe, None, name, **call)
        same = result == expected if isinstance(expected, str) else torch.equal(result, expected)
        assert same, f"{result!s:.300}"
        spectrum_diffusion.disable(pipe)
        assert not any(isinstance(m.__dict__.get(SLOT), Interceptor) for m in pipe.transformer.modules())
    return expected


# Weights of fewer bits


def quantize_quanto(pipe: Any) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(pipe.transformer, weights=quanto.qint8)
    quanto.freeze(pipe.transformer)


def quantize_torchao(pipe: Any) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig())


@at_every_site
@pytest.mark.parametrize("change", [quantize_quanto, quantize_torchao])
def test_int8_weights(site: str, change: Change) -> None:
    skipped = check_every_order("flux", change, site)
    pipe = PIPELINES["flux"].build()
    change(pipe)
    calls: list[int] = []
    pipe.transformer.norm_out.register_forward_hook(lambda *_: calls.append(1))
    plain = PIPELINES["flux"].call(pipe, steps=STEPS)
    assert len(calls) == STEPS
    assert not torch.equal(skipped, plain)
    calls.clear()
    outcome(pipe, site, "flux")
    if site in ("output", "sampler"):  # there the denoiser does not run at all: the gain is on top
        assert len(calls) == 4


# Compilation


@pytest.mark.slow
@pytest.mark.parametrize("site", ["output", "last_block"])
@pytest.mark.parametrize("enable_first", [False, True])
def test_compiled_by_inductor(site: str, enable_first: bool) -> None:
    """Real code of the CPU: as the plain model, and no graph more after the first evaluated and first skipped step."""
    from torch._dynamo.utils import counters

    entry, pipe, plain = PIPELINES["flux"], PIPELINES["flux"].build(), PIPELINES["flux"].build()
    expected = outcome(plain, site, "flux")
    counters.clear()
    if enable_first:
        enable(pipe, site)
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    if not enable_first:
        enable(pipe, site)
    graphs: list[int] = []

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        graphs.append(counters["stats"]["unique_graphs"])
        return tensors

    for _ in range(2):
        torch.testing.assert_close(
            entry.call(pipe, steps=STEPS, callback_on_step_end=count), expected, atol=1e-4, rtol=1e-4
        )
    assert graphs[0] > 0
    assert len(set(graphs[3:])) == 1, graphs
    assert not counters["graph_break"]


# Where and how it runs


def offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_and_undo(pipe: Any) -> None:
    """Accelerate leaves a ``forward`` behind on each module."""
    offload(pipe)
    pipe.remove_all_hooks()


def dispatch(pipe: Any) -> None:
    """As ``device_map`` does: the second half of the blocks is read from a file whenever it is called."""
    places = {name: "cpu" for name, _ in pipe.transformer.named_children()} | {"single_transformer_blocks": "disk"}
    folder = tempfile.TemporaryDirectory()
    accelerate.dispatch_model(pipe.transformer, places, main_device="cpu", offload_dir=folder.name, force_hooks=True)
    pipe._folder = folder  # removed with the pipeline


@at_every_site
@pytest.mark.parametrize("place", [offload, offload_and_undo, dispatch], ids=lambda place: place.__name__)
def test_where_weights_lie_changes_no_image(place: Change, site: str) -> None:
    result = check_every_order("flux", place, site)
    assert not isinstance(result, str), result
    assert torch.equal(result, outcome(PIPELINES["flux"].build(), site, "flux"))


@pytest.mark.parametrize("site", ["output", "last_block"])
def test_a_skipped_step_reads_no_block_from_the_disk(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, pipe, reads = PIPELINES["flux"], PIPELINES["flux"].build(), []
    dispatch(pipe)
    load = accelerate.utils.OffloadedWeightsLoader.__getitem__
    monkeypatch.setattr(
        accelerate.utils.OffloadedWeightsLoader, "__getitem__", lambda self, key: reads.append(key) or load(self, key)
    )
    entry.call(pipe, steps=STEPS)
    whole = len(reads)
    reads.clear()
    handle = enable(pipe, site)
    entry.call(pipe, steps=STEPS)
    assert whole > 0
    assert len(reads) * STEPS == whole * handle.summary().nfe


def cast_to_float8(pipe: Any) -> None:
    """Weights are kept in 8 bits, and cast when a layer is called."""
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def prepare(pipe: Any) -> None:
    """Accelerate wraps ``forward`` in autocast, and casts its output back."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    pipe.transformer = accelerator.prepare_model(pipe.transformer, evaluation_mode=True)


def fuse_projections(pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()


@pytest.mark.parametrize("site", ["output", "last_block", "module"])
@pytest.mark.parametrize("change", [cast_to_float8, prepare, fuse_projections], ids=lambda change: change.__name__)
def test_how_a_layer_computes(change: Change, site: str) -> None:
    skipped = check_every_order("flux", change, site)
    assert not isinstance(skipped, str), skipped
    pipe = PIPELINES["flux"].build()
    change(pipe)
    assert not torch.equal(skipped, PIPELINES["flux"].call(pipe, steps=STEPS))


@at_every_site
@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["inference", "autocast"]
)
def test_inference_mode_and_autocast(site: str, context: Callable[[], Any]) -> None:
    """Inside of it and outside in turns; tensors of inference mode are not to be written to outside."""
    entry, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with context():
        plain = entry.call(pipe, steps=STEPS)
    enable(pipe, site)
    outside = entry.call(pipe, steps=STEPS)
    with context():
        inside = entry.call(pipe, steps=STEPS)
        assert torch.equal(entry.call(pipe, steps=STEPS), inside)
        assert not torch.equal(inside, plain)
    assert torch.isfinite(inside).all()
    assert inside.dtype != outside.dtype or torch.equal(inside, outside)  # autocast gives bfloat16
    assert torch.equal(entry.call(pipe, steps=STEPS), outside)


# Further models beside the denoiser


def sd15_with(**others: Any) -> dict[str, Any]:
    parts = {**PIPELINES["sd15"].build().components, **others}
    return {name: part for name, part in parts.items() if name != "image_encoder"}


def controlnet(**call: Any) -> tuple[Any, dict[str, Any], nn.Module]:
    net = d.ControlNetModel.from_unet(PIPELINES["sd15"].build().unet, conditioning_channels=3).eval()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    pipe = d.StableDiffusionControlNetPipeline(**sd15_with(controlnet=net), requires_safety_checker=False)
    return pipe, {"image": image(8)}, net


def t2i_adapter() -> tuple[Any, dict[str, Any], nn.Module]:
    sizes = {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 1}
    adapter = d.T2IAdapter(in_channels=3, adapter_type="full_adapter", **sizes)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = tiny_unet(down_block_types=down, up_block_types=up).eval()
    pipe = d.StableDiffusionAdapterPipeline(
        **sd15_with(unet=unet, adapter=adapter.eval()), requires_safety_checker=False
    )
    return pipe, {"image": image(8)}, adapter


@pytest.mark.parametrize("site", ["output", "sampler", "last_block"])
@pytest.mark.parametrize(("build", "calls"), [(controlnet, STEPS + 1), (t2i_adapter, 1)])
def test_a_model_beside_the_denoiser(build: Any, calls: int, site: str) -> None:
    """A ControlNet runs at every step: the pipeline calls it before the denoiser, and other steps need its results."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe, call, beside = build()
    pipe.set_progress_bar_config(disable=True)
    arguments = {**PIPELINES["sd15"].family.inputs, **call, "num_inference_steps": STEPS, "output_type": "latent"}
    ran: list[int] = []
    beside.register_forward_hook(lambda *_: ran.append(1))

    def sample() -> torch.Tensor:
        ran.clear()
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images

    plain = sample()
    with enable(pipe, site) as handle:
        skipped = sample()
        assert not torch.equal(skipped, plain)
        assert handle.summary().fallbacks == {}
        assert handle.summary().nfe < STEPS + 1
        assert len(ran) == calls
        assert torch.equal(sample(), skipped)
    assert torch.equal(sample(), plain)


# Guidance


def modular(guider: Any) -> Any:
    blocks = pytest.importorskip("diffusers.modular_pipelines")
    from diffusers.modular_pipelines.stable_diffusion_3 import before_denoise, denoise

    class Blocks(blocks.SequentialPipelineBlocks):
        model_name = "stable-diffusion-3"
        block_classes = [before_denoise.StableDiffusion3SetTimestepsStep, denoise.StableDiffusion3DenoiseStep]
        block_names = ["set_timesteps", "denoise"]

    pipe = Blocks().init_pipeline()
    pipe.update_components(
        transformer=PIPELINES["sd3"].build().transformer, scheduler=schedulers.flow_euler(), guider=guider
    )
    return pipe


GUIDERS: dict[str, Callable[[], Any]] = {
    "ClassifierFreeGuidance": lambda: d.ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.7),
    "ClassifierFreeZeroStarGuidance": lambda: d.ClassifierFreeZeroStarGuidance(guidance_scale=4.0),
    "AdaptiveProjectedGuidance": lambda: d.AdaptiveProjectedGuidance(
        guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5
    ),
    "TangentialClassifierFreeGuidance": lambda: d.TangentialClassifierFreeGuidance(guidance_scale=4.0),
}


@pytest.mark.parametrize("site", ["output", "last_block"])
@pytest.mark.parametrize("guider", GUIDERS)
def test_modular_pipelines_and_their_guiders(guider: str, site: str) -> None:
    pipe = modular(GUIDERS[guider]())
    call = {name: value for name, value in PIPELINES["sd3"].family.inputs.items() if "embeds" in name}

    def sample() -> torch.Tensor:
        return pipe(latents=noise(1, 16, 8, 8), num_inference_steps=STEPS, output="latents", **call)

    plain = sample()
    with enable(pipe, site) as handle:
        skipped = sample()
        summary = handle.summary()
        assert (summary.steps, summary.fallbacks) == (STEPS, {})
        assert summary.nfe < STEPS
        assert len(summary.branches) == 2
        assert not torch.equal(skipped, plain)
        assert torch.equal(sample(), skipped)
    assert torch.equal(sample(), plain)


@at_every_site
def test_guidance_rescale(site: str) -> None:
    entry, pipe = PIPELINES["sdxl"], PIPELINES["sdxl"].build()
    plain = entry.call(pipe, steps=STEPS, guidance_rescale=0.7)
    with enable(pipe, site) as handle:
        skipped = entry.call(pipe, steps=STEPS, guidance_rescale=0.7)
        assert handle.summary().fallbacks == {}
        assert not torch.equal(skipped, entry.call(pipe, steps=STEPS))
    assert torch.equal(entry.call(pipe, steps=STEPS, guidance_rescale=0.7), plain)


@at_every_site
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_an_interrupted_generation_ends_and_leaves_no_trace(name: str, site: str) -> None:
    entry, pipe = PIPELINES[name], PIPELINES[name].build()

    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 3
        return tensors

    handle = enable(pipe, site)
    expected = entry.call(pipe, steps=STEPS)
    assert torch.isfinite(entry.call(pipe, steps=STEPS, callback_on_step_end=interrupt)).all()
    assert handle.summary().steps == 4
    assert torch.equal(entry.call(pipe, steps=STEPS), expected)


# Files and processes


@at_every_site
def test_what_is_saved_while_enabled_is_the_plain_pipeline(site: str, tmp_path: Path) -> None:
    entry, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    plain = entry.call(pipe, steps=STEPS)
    enable(pipe, site)
    skipped = entry.call(pipe, steps=STEPS)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(entry.call(pipe, steps=STEPS), skipped)
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    loaded = d.DiffusionPipeline.from_pretrained(tmp_path, **absent)
    assert type(loaded) is d.FluxPipeline
    torch.testing.assert_close(entry.call(loaded, steps=STEPS), plain)  # its weights lie elsewhere in memory


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def shard(pipe: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for block in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(pipe.transformer, mesh=mesh)


@pytest.mark.usefixtures("alone")
@at_every_site
def test_fully_sharded_weights(site: str) -> None:
    plain = PIPELINES["flux"].build()
    expected = outcome(plain, site, "flux")
    result = check_every_order("flux", shard, site)
    assert not isinstance(result, str), result
    torch.testing.assert_close(result, expected)


@pytest.mark.usefixtures("alone")
@at_every_site
def test_a_denoiser_in_a_data_parallel_wrapper_is_refused_or_works(site: str) -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer = nn.parallel.DistributedDataParallel(pipe.transformer.requires_grad_(True))
    with warnings.catch_warnings(), pytest.raises(SpectrumError, match="DistributedDataParallel"):
        enable(pipe, site)
