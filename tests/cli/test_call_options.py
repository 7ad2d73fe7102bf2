"""Options of a call beside the prompt: negative prompts, images to start from, LoRAs, and any other argument."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from typer.testing import CliRunner

from spectrum_diffusion import load_default_pipeline
from spectrum_diffusion.bench.evaluate import Request, Row
from spectrum_diffusion.bench.evaluate.units import make_work_plan
from spectrum_diffusion.bench.images import describe_image, with_image
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.cli import app, pipelines
from spectrum_diffusion.cli.guard import MistakeError
from spectrum_diffusion.cli.lora import load_loras, parse_lora
from spectrum_diffusion.errors import InvalidOptionError, UnsupportedModelError
from spectrum_diffusion.loading import image_to_image

QUICK = ["--steps", "8", "--device", "cpu"]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((97, 70), 90).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    transformer = load_default_pipeline().transformer
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return folder / "pytorch_lora_weights.safetensors"


def test_an_image_is_where_sampling_starts(photo: Path, tmp_path: Path) -> None:
    arguments = ["generate", "red apple", "--image", photo, "--steps", 20, "--device", "cpu", "--json"]
    outputs = {}
    for strength in (0.1, 1):
        path = tmp_path / f"{strength}.png"
        outputs[strength] = json.loads(run(*arguments, "--strength", strength, "-o", path).stdout)
    assert [outputs[strength]["steps"] for strength in (0.1, 1)] == [2, 20]  # what runs, not what was asked for
    start = np.asarray(Image.open(photo).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    near, far = (np.abs(pixels(tmp_path / f"{strength}.png") - start).mean() for strength in (0.1, 1))
    assert near < far / 2
    call = json.loads(Image.open(tmp_path / "1.png").text["spectrum"])["call"]
    assert call["image"] == describe_image(photo)
    assert call["strength"] == 1


def test_what_an_image_is_resized_to(photo: Path) -> None:
    plain = load_default_pipeline()
    pipe, call = image_to_image(plain), {"image": describe_image(photo)}
    assert type(pipe).__name__ == "FluxImg2ImgPipeline"
    assert pipe.transformer is plain.transformer
    assert with_image(pipe, call)["image"].size == (64, 64)  # the default of the model
    assert with_image(pipe, {**call, "width": 96, "height": 48})["image"].size == (96, 48)

    class Bare:
        vae_scale_factor = 16

        def __call__(self, image: Any, strength: float = 0.5) -> None: ...

    assert with_image(Bare(), call)["image"].size == (96, 64)  # its own, as far as the pipeline can
    assert with_image(Bare(), {**call, "width": 32, "height": 16}).keys() == {"image"}
    assert with_image(Bare(), {"strength": 1}) == {"strength": 1}
    pipelines.check_arguments(Bare(), {**call, "width": 32, "height": 16})  # a size that only the image needs


def test_kept_results_belong_to_what_they_were_made_from(photo: Path, lora: Path, tmp_path: Path) -> None:
    """The same image, scale and arguments give the same keys; others give other keys."""

    def key(loras: tuple[str, ...] = (), **call: Any) -> str:
        pipe = load_default_pipeline()
        load_loras(pipe, loras)
        request = Request(model="x", rows=(Row("reuse"),), prompts=(Prompt("apple"),), call=call)
        return make_work_plan(pipe, request).references[0].key

    path = tmp_path / "a.png"
    path.write_bytes(photo.read_bytes())
    first = key(image=describe_image(path))
    assert key(image=describe_image(path)) == first
    Image.open(photo).rotate(180).save(path)
    assert key(image=describe_image(path)) != first
    assert key((f"{lora}:0.5",)) == key((f"{lora}:0.5",)) != key((f"{lora}:0.7",)) != key()
    assert key(negative_prompt="a") != key(negative_prompt="b")


def test_compare_starts_from_an_image_and_continues(photo: Path, tmp_path: Path) -> None:
    arguments = ["compare", "red apple", "--methods", "reuse", "-o", tmp_path, "--image", photo, "--strength", 0.3]
    for computed in (2, 0):
        run(*arguments, *QUICK)
        manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["runs"][-1]["computed"] == computed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (results["steps"], results["image"], results["strength"]) == (3, str(photo), 0.3)


def test_a_lora_changes_the_image_by_its_scale(lora: Path, tmp_path: Path) -> None:
    images = {}
    for name, options in {"none": [], "0": ["--lora", f"{lora}:0"], "1": ["--lora", lora]}.items():
        run("generate", "red apple", *options, "-o", tmp_path / f"{name}.png", *QUICK)
        images[name] = pixels(tmp_path / f"{name}.png")
    assert np.abs(images["0"] - images["none"]).max() <= 1  # adds zeros
    assert np.abs(images["1"] - images["none"]).max() > 20
    assert json.loads(Image.open(tmp_path / "1.png").text["spectrum"])["lora"] == [str(lora)]


def test_a_negative_prompt_changes_the_image(tmp_path: Path) -> None:
    for name, text in {"a": "blue", "b": "a large yellow star"}.items():
        options = ["--negative-prompt", text, "--call", "true_cfg_scale=3"]
        run("generate", "red apple", *options, "-o", tmp_path / f"{name}.png", *QUICK)
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).max() > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "0.5"], "--strength 0.5 says how much of an image changes: add --image FILE"),
        (["--image", "photo.png", "--strength", "1.5"], "--strength 1.5 is out of range"),
        (["--image", "photo.png", "--strength", "0"], "--strength 0.0 is out of range"),
        (["--image", "none.png"], "--image 'none.png' cannot be read (No such file or directory)"),
        (["--image", "text.png"], "--image 'text.png' cannot be read (it is not an image that Pillow reads)"),
        (["--lora", "none.safetensors"], "--lora 'none.safetensors' does not exist"),
        (["--lora", "text.png:nan"], "has the scale nan: give a finite number"),
        (["--lora", "text.png:loud"], "has the scale loud: give a finite number"),
        (["--lora", "text.png"], "--lora 'text.png' cannot be loaded into FluxPipeline"),
        (["--negative-prompt", "x"], "no effect on FluxPipeline with true_cfg_scale=1: add --call true_cfg_scale=4"),
        (["--call", "width"], "--call 'width' is not written name=value"),
        (["--call", "wide=3"], "FluxPipeline takes no wide: leave out --call wide"),
        (["--call", "prompt=x"], "--call prompt=… would replace what the command passes"),
        (["--call", "num_inference_steps=3"], "--call num_inference_steps=3 has an option of its own"),
        (["--image", "photo.png", "--size", "65"], "both sides must be multiples of"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    result = run("generate", "apple", "-o", "a.png", *arguments, *QUICK, code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "a.png").exists()


def test_pipelines_without_a_counterpart_or_a_loader_say_so(lora: Path) -> None:
    class Bare:
        config: ClassVar[dict[str, Any]] = {}

        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(UnsupportedModelError, match="Bare has no LoRA loader: leave out --lora"):
        load_loras(Bare(), [str(lora)])
    with pytest.raises(UnsupportedModelError, match="Bare takes no image, and diffusers has no image-to-image"):
        image_to_image(Bare())
    with pytest.raises(MistakeError, match="Bare takes no negative_prompt: leave out --negative-prompt"):
        pipelines.check_arguments(Bare(), {"negative_prompt": "x"})


def test_a_negative_prompt_needs_guidance() -> None:
    class Guided:
        def __call__(self, negative_prompt: str = "", guidance_scale: float = 5.0) -> None: ...

    pipelines.check_arguments(Guided(), {"negative_prompt": "x"})
    with pytest.raises(MistakeError, match="with guidance_scale=1: add --guidance above 1"):
        pipelines.check_arguments(Guided(), {"negative_prompt": "x", "guidance_scale": 1.0})


def test_how_a_lora_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").touch()
    assert parse_lora("a.safetensors") == ("a.safetensors", 1.0)
    assert parse_lora("a.safetensors:-0.5") == ("a.safetensors", -0.5)
    assert parse_lora("owner/name:0.8") == ("owner/name", 0.8)
    assert parse_lora("owner/name/file.safetensors") == ("owner/name/file.safetensors", 1.0)


def test_a_lora_of_another_model_is_refused(lora: Path) -> None:
    class Other(StableDiffusionXLPipeline):
        """Takes weights without a word, as diffusers does where none fits."""

        def __init__(self) -> None: ...

        def load_lora_weights(self, *args: Any, **kwargs: Any) -> None: ...

        def get_list_adapters(self) -> dict[str, list[str]]:
            return {}

    with pytest.raises(InvalidOptionError, match="has no weights for Other"):
        load_loras(Other(), [str(lora)])
