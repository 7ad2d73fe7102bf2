"""The model that ships: it loads offline, obeys its prompts, and its call takes the trained defaults."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from spectrum_diffusion import loading as default_model
from spectrum_diffusion.bench.prompts import load_prompts
from spectrum_diffusion.loading import ASSETS, DEFAULT_MODEL, load_default_pipeline, load_pipeline, small_models

FOLDER = ASSETS / DEFAULT_MODEL


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    pipe = load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: FluxPipeline, prompt: str = "red apple", seed: int = 0, **options: object) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="np", **options).images[0]


def middle(picture: np.ndarray) -> np.ndarray:
    """Mean colour of the middle quarter."""
    side = len(picture) // 4
    return picture[side:-side, side:-side].mean(axis=(0, 1))


def test_loads_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the shipped model must not need the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert isinstance(load_default_pipeline(), FluxPipeline)


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    load_default_pipeline()
    assert capfd.readouterr() == ("", "")


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 10_000_000


def test_all_parts_have_the_type_asked_for() -> None:
    pipe = load_default_pipeline(torch.bfloat16)
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in modules} == {torch.bfloat16}


def test_the_same_seed_gives_the_same_picture(pipeline: FluxPipeline) -> None:
    np.testing.assert_array_equal(draw(pipeline), draw(pipeline))


def test_bare_call_equals_explicit_call(pipeline: FluxPipeline) -> None:
    explicit = json.loads((FOLDER / "call_defaults.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(draw(pipeline), draw(pipeline, **explicit))


def test_call_shows_its_defaults(pipeline: FluxPipeline) -> None:
    signature = inspect.signature(pipeline.__call__)
    explicit = json.loads((FOLDER / "call_defaults.json").read_text(encoding="utf-8"))
    assert {name: signature.parameters[name].default for name in explicit} == explicit
    assert list(signature.parameters) == list(inspect.signature(FluxPipeline.__call__).parameters)[1:]


def test_explicit_arguments_win(pipeline: FluxPipeline) -> None:
    steps: list[int] = []

    def note(pipe: FluxPipeline, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        steps.append(index)
        return tensors

    picture = draw(pipeline, num_inference_steps=4, height=32, callback_on_step_end=note)
    assert picture.shape == (32, 64, 3)
    assert steps == [0, 1, 2, 3]


def test_round_trip(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "FluxPipeline"
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is FluxPipeline
    explicit = json.loads((FOLDER / "call_defaults.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(draw(again, **explicit), draw(pipeline))


@pytest.mark.parametrize("seed", [0, 1])
def test_colour_words(pipeline: FluxPipeline, seed: int) -> None:
    red, green, blue = middle(draw(pipeline, "red apple", seed))
    assert red > green + 0.2
    assert red > blue + 0.2
    red, green, blue = middle(draw(pipeline, "green apple", seed))
    assert green > red + 0.1
    assert green > blue + 0.1


def test_background_words(pipeline: FluxPipeline) -> None:
    edge = draw(pipeline, "red apple on a blue background")[:3].mean(axis=(0, 1))
    assert edge[2] > edge[0] + 0.2
    assert draw(pipeline)[:3].mean() > 0.9


@pytest.mark.parametrize("name", sorted({"tiny-sd3", "tiny-sdxl"} & set(small_models())))
def test_the_other_models_of_pictures_obey(name: str) -> None:
    pipe = load_pipeline(name, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    red, green, blue = middle(draw(pipe, "apple"))
    assert red > max(green, blue) + 0.2
    smiley = draw(pipe, "smiley on blue")
    red, green, blue = middle(smiley)
    assert min(red, green) > blue + 0.3
    edge = smiley[:3].mean(axis=(0, 1))
    assert edge[2] > edge[0] + 0.2
    assert draw(pipe, "smiley")[:3].mean() > 0.9


def test_guidance_changes_the_picture(pipeline: FluxPipeline) -> None:
    assert np.abs(draw(pipeline, guidance_scale=1.0) - draw(pipeline, guidance_scale=3.0)).mean() > 1e-3


def test_a_folder_without_call_defaults_keeps_the_class(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    assert type(load_pipeline(tmp_path)) is FluxPipeline


def test_unknown_call_default(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "call_defaults.json").write_text('{"steps": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="names steps, which FluxPipeline does not take"):
        load_pipeline(tmp_path)


def test_every_small_model_loads_by_name_and_draws_by_prompt_alone() -> None:
    others = set(small_models()) - {DEFAULT_MODEL}
    for name in sorted(others):
        pipe = load_pipeline(name)
        pipe.set_progress_bar_config(disable=True)
        (prompt, *_) = load_prompts("tiny", model=name)
        output = pipe(prompt.text, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
        assert np.isfinite(np.asarray(output[0])).all(), name


def test_every_small_model_is_small_and_has_a_card() -> None:
    for name, folder in small_models().items():
        assert (folder / "README.md").is_file(), name
        limit = 10 if name == DEFAULT_MODEL else 8  # MB
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= limit * 1e6, name


def test_no_small_model_tells_where_it_was_made() -> None:
    for folder in small_models().values():
        for path in folder.rglob("*.json"):
            assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_a_checkouts_models_are_found_beside_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-other").mkdir()
    (tmp_path / "tiny-other" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tiny-unfinished").mkdir()
    monkeypatch.setattr(default_model, "CHECKOUT_MODELS", tmp_path)
    assert small_models() == {"tiny-other": tmp_path / "tiny-other", DEFAULT_MODEL: FOLDER}


def test_without_a_checkout_only_the_shipped_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "CHECKOUT_MODELS", tmp_path / "none")
    assert list(small_models()) == [DEFAULT_MODEL]
