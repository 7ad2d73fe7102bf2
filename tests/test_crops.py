"""The data of tiny-rough: crops, what their captions say, and the recipe from images to a pipeline."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectrum_diffusion import load_pipeline
from spectrum_diffusion.bench.prompts import load_prompts
from training import crops, debian
from training.crops import DIMENSIONS, KINDS, PALETTE, CropConfig
from training.debian import Source
from training.optim import OptimConfig
from training.roughness import follows, loss, main_colour, named_colours, psnr, sample
from training.tiny_rough import TinyRoughRecipe, windows

CONFIG = CropConfig(each=200, held_out=20)


def plain(colour: str, side: int = 56) -> np.ndarray:
    return np.full((side, side, 3), PALETTE[colour], np.uint8)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Coloured noise in place of the packages, which would have to be fetched."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for kind in KINDS:
        (folder / "usr" / "share" / kind).mkdir(parents=True)
        for number in range(24):
            coarse = rng.integers(256, size=(9, 12, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((120, 90)).save(
                folder / "usr" / "share" / kind / f"{number:02d}-{kind[:2]}.png"
            )
    sources = tuple(Source("package", "1", "", kind, (f"usr/share/{kind}/*.png",), "none") for kind in KINDS)
    monkeypatch.setattr(debian, "SOURCES", sources)
    monkeypatch.setattr(debian, "fetch", lambda source, work_dir: folder)
    return folder


@pytest.fixture
def recipe(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRoughRecipe:
    """The recipe with few crops, of which none is kept from training, and two steps."""
    whole = TinyRoughRecipe.config
    denoiser = dataclasses.replace(whole.denoiser, prompts=1, optim=OptimConfig(steps=2, batch=4, log_every=1))
    monkeypatch.setattr(TinyRoughRecipe, "crops", CONFIG)
    monkeypatch.setattr(crops, "prompts", lambda words, each: [("dark detailed red and blue texture", "texture")])
    return TinyRoughRecipe(dataclasses.replace(whole, denoiser=denoiser), tmp_path / "work", tmp_path / "model")


def test_a_few_steps_give_a_pipeline_that_samples(recipe: TinyRoughRecipe, tmp_path: Path) -> None:
    recipe.denoiser()
    recipe.export()
    pipe = load_pipeline(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    (prompt,) = load_prompts("tiny", model=str(tmp_path / "model"))
    images = sample(pipe, [prompt.text], steps=2)
    assert images.shape == (1, 48, 48, 3)
    assert np.isfinite(images).all()
    # zero-initialised, after two steps: the error of the prediction "nothing"
    assert loss(pipe, recipe, recipe.data(held_out=True)) == pytest.approx(2.0, rel=0.25)


def test_crops_are_the_same_each_time_and_of_no_held_out_image(recipe: TinyRoughRecipe, images: Path) -> None:
    files = [(source, path) for source in debian.SOURCES for path in debian.files(source, images)]
    first, second = (crops.crops_of_kind(files, CONFIG, held_out=False) for _ in range(2))
    assert torch.equal(first.pixels, second.pixels)
    assert len(first.pixels.flatten(1).unique(dim=0)) == CONFIG.each
    kept = {path for _, path in files if crops.is_held_out(path)}
    assert 0 < len(kept) < len(files) / 4
    without = crops.crops_of_kind([pair for pair in files if pair[1] not in kept], CONFIG, held_out=False)
    assert torch.equal(first.pixels, without.pixels)


def test_training_leaves_out_the_combinations_of_the_list_of_prompts(recipe: TinyRoughRecipe) -> None:
    data, everything = recipe.training_data(), recipe.data()
    unseen = crops.is_unseen(everything.words)
    assert 0.05 < unseen.float().mean() < 0.25
    assert len(data.latents) == 9 * int((~unseen).sum())
    assert not crops.is_unseen(torch.stack(data.shown, 1)).any()


def test_prompts_are_of_unseen_combinations_and_name_every_part() -> None:
    every = torch.cartesian_prod(*(torch.arange(len(words)) for words in DIMENSIONS))
    chosen = crops.prompts(every, each=4)
    assert len(set(chosen)) == 4 * len(PALETTE)
    places = {crops.join(*crops.whole_words(tuple(row))): row for row in every.tolist()}
    for text, kind in chosen:
        row = places[text]
        assert crops.is_unseen(torch.tensor(row))
        assert all(crops.whole_words(tuple(row)))
        assert text.endswith(kind)


@pytest.mark.parametrize("colour", PALETTE)
def test_a_plain_crop_is_described_by_its_colour(colour: str) -> None:
    words = crops.whole_words(crops.describe(plain(colour), "texture", CONFIG))
    assert (words[0], words[2], words[3], words[4]) == ("texture", "smooth", colour, "")
    assert main_colour(plain(colour) / 255) == colour


def test_a_caption_names_the_second_colour_brightness_and_detail() -> None:
    crop = plain("black")
    crop[::2, ::3] = PALETTE["yellow"]
    crop[1::2, ::3] = PALETTE["yellow"]
    words = crops.whole_words(crops.describe(crop, "drawing", CONFIG))
    assert words == ("drawing", "dark", "detailed", "black", "yellow")
    assert crops.join(*words) == "dark detailed black and yellow drawing"
    assert named_colours("dark detailed black and yellow drawing") == ["black", "yellow"]


def test_an_image_follows_its_caption_if_its_main_colour_is_named() -> None:
    images = np.stack([plain("red"), plain("blue"), plain("green")]) / 255
    prompts = ["smooth red and blue texture", "red and blue drawing", "teal photograph"]
    assert follows(images, prompts, named=1) == pytest.approx(1 / 3)
    assert follows(images, prompts, named=2) == pytest.approx(2 / 3)


def test_every_caption_fits_into_the_tokens(recipe: TinyRoughRecipe) -> None:
    texts, dimensions = recipe.texts(1)
    assert len(texts) == np.prod(dimensions)
    longest = max(texts, key=lambda text: len(text.split()))
    for tokenizer in recipe.tokenizers():
        assert len(tokenizer(longest).input_ids) <= recipe.config.text.tokens


def test_windows_are_the_squares_of_the_latents() -> None:
    latents = torch.randn(2, 4, 14, 14)
    squares = windows(latents, 12)
    assert squares.shape == (2, 9, 4, 12, 12)
    assert torch.equal(squares[1, 5], latents[1, :, 1:13, 2:14])


def test_psnr_of_a_known_error() -> None:
    images = np.zeros((2, 4, 4, 3))
    np.testing.assert_allclose(psnr(images + np.array([0.1, 0.01])[:, None, None, None], images), [20, 40])
