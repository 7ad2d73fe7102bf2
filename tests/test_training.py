"""The recipes of the small models: a few steps on a few pictures, exported, loaded and drawn."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from spectrum_diffusion import load_pipeline
from training import dataset, recipe
from training.denoiser import DistilConfig, draw_batch
from training.optim import OptimConfig
from training.process import FlowMatching, NoisePrediction
from training.recipe import TINY_FLUX, Recipe
from training.text import make_clip_tokenizer
from training.tiny_flux import TinyFluxRecipe
from training.tiny_hunyuan import TinyHunyuanRecipe
from training.tiny_sd3 import TinySD3Recipe
from training.tiny_sdxl import TinySDXLRecipe
from training.tiny_wan import TinyWanRecipe
from training.vae import Part, cut, encode_all
from training.video import VideoConfig

RECIPES = [TinyFluxRecipe, TinySD3Recipe, TinySDXLRecipe]
VIDEO_RECIPES = [TinyWanRecipe, TinyHunyuanRecipe]
OPTIM = OptimConfig(steps=2, batch=4, log_every=1)


def shortened(kind: type[Recipe], folder: Path) -> Recipe:
    """The recipe with two concepts, two steps a stage and no compiler; its VAE is tiny-flux's."""
    whole = kind.config
    config = dataclasses.replace(
        whole,
        concepts=("apple", "lemon"),
        variants=dataset.VariantConfig(plain=2, recoloured=1),
        vae=None,
        denoiser=dataclasses.replace(whole.denoiser, prompts=2, compile=False, optim=OPTIM),
        distil=None if whole.distil is None else DistilConfig(optim=OPTIM),
    )
    return kind(config, folder / "work", folder / "model")


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discs in place of the emoji, which would have to be fetched."""

    def read(folder: Path, names: list[str]) -> dict[str, Image.Image]:
        disc = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.8
        picture = Image.fromarray(np.dstack([255 * disc, 40 * disc, 40 * disc, 255 * disc]).astype(np.uint8), "RGBA")
        return dict.fromkeys(names, picture)

    monkeypatch.setattr(recipe.emoji, "fetch", lambda folder: folder)
    monkeypatch.setattr(recipe.emoji, "read_pictures", read)


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.name)
@pytest.mark.usefixtures("originals")
def test_a_few_steps_give_a_pipeline_that_draws(kind: type[Recipe], tmp_path: Path) -> None:
    training = shortened(kind, tmp_path)
    training.distil()
    training.export()
    pipe = load_pipeline(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


@pytest.mark.parametrize("kind", VIDEO_RECIPES, ids=lambda kind: kind.name)
@pytest.mark.usefixtures("originals")
def test_a_few_steps_give_a_pipeline_that_draws_videos(kind: type[Recipe], tmp_path: Path) -> None:
    short = shortened(kind, tmp_path).config
    vae = dataclasses.replace(kind.config.vae, optim=dataclasses.replace(OPTIM, batch=1))
    config = dataclasses.replace(short, concepts=("apple",), videos=VideoConfig(variants=1), vae=vae)
    training = kind(config, tmp_path / "work", tmp_path / "model")
    training.distil()
    training.export()
    pipe = load_pipeline(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("red apple spinning", num_inference_steps=2, output_type="np").frames[0]
    assert frames.shape == (13, 48, 48, 3)
    assert np.isfinite(frames).all()


@pytest.mark.usefixtures("originals")
def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    training = shortened(TinySD3Recipe, tmp_path)
    training.denoiser()
    path = tmp_path / "work" / "denoiser.pt"
    before = torch.load(path, weights_only=True)
    training.config = recipe.with_steps(training.config, {"denoiser": 3})
    training.denoiser()
    after = torch.load(path, weights_only=True)
    assert (before["step"], after["step"]) == (2, 3)
    assert after["losses"][:2] == before["losses"]


@pytest.mark.usefixtures("originals")
def test_a_step_draws_the_same_batch_each_time(tmp_path: Path) -> None:
    training = shortened(TinySD3Recipe, tmp_path)
    data, config = training.training_data(), training.config.denoiser
    first, second, other = (draw_batch(data, 4, config, seed, 0.5) for seed in (7, 7, 8))
    torch.testing.assert_close(first.noisy, second.noisy, rtol=0, atol=0)
    assert not torch.equal(first.noisy, other.noisy)


def test_an_unknown_concept_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(TinySD3Recipe.config, concepts=("apple", "unicycle"))
    with pytest.raises(ValueError, match="no concept is called unicycle"):
        TinySD3Recipe(config, tmp_path, tmp_path)


def test_flow_matching_ends_at_the_noise() -> None:
    latents, noise = torch.randn(2, 3, 4, 4, 4)
    process = FlowMatching(shift=3.0)
    for sigma, expected in ((0.0, latents), (1.0, noise)):
        torch.testing.assert_close(process.noisy(latents, noise, torch.full((3,), sigma)), expected)


def test_noise_prediction_keeps_unit_variance() -> None:
    latents, noise = torch.randn(2, 1000, 4, 8, 8)
    process = NoisePrediction()
    noisy = process.noisy(latents, noise, process.times(torch.linspace(0, 1, 1000)))
    assert noisy.var().item() == pytest.approx(1, abs=0.01)


def test_a_part_of_the_training_cuts_the_same_out_of_all() -> None:
    videos = torch.arange(2 * 3 * 13 * 8 * 8).view(2, 3, 13, 8, 8)
    part = Part(1.0, crop=4, frames=5)
    parts = cut(videos, part, torch.Generator().manual_seed(3))
    assert parts.shape == (2, 3, 5, 4, 4)
    steps = (parts - parts[..., :1, :1, :1]).unique(dim=0)
    assert len(steps) == 1  # both videos, shifted alike
    assert torch.equal(parts.diff(dim=2).unique(), torch.tensor([64]))  # frames in a row
    assert cut(videos[:, :, 0], part, torch.Generator()).shape == (2, 3, 4, 4)
    assert torch.equal(cut(videos, Part(1.0), torch.Generator()), videos)


def test_an_autoencoder_of_videos_begins_with_what_that_of_pictures_knows(tmp_path: Path) -> None:
    pictures = AutoencoderKL.from_pretrained(TINY_FLUX / "vae").eval()
    torch.manual_seed(0)
    video = TinyHunyuanRecipe(TinyHunyuanRecipe.config, tmp_path, tmp_path).untrained_vae().eval()
    channels = pictures.config.latent_channels
    frames = torch.randint(0, 256, (4, 3, 1, 48, 48), dtype=torch.uint8)
    moments = video.encode(frames.float() / 127.5 - 1).latent_dist
    assert moments.mean[:, channels:].abs().max() == 0
    assert moments.mean[:, :channels].std() > 0.1
    assert moments.logvar.eq(-6).all()
    kernel = video.encoder.conv_in.conv.weight
    assert torch.equal(kernel[:, :, -1], pictures.encoder.conv_in.weight)
    assert kernel[:, :, :-1].abs().max() == 0


def test_hunyuans_autoencoder_takes_in_means_and_scales(tmp_path: Path) -> None:
    recipe = TinyHunyuanRecipe(TinyHunyuanRecipe.config, tmp_path, tmp_path)
    torch.manual_seed(0)
    vae = recipe.untrained_vae().eval()
    torch.nn.init.normal_(vae.quant_conv.weight, std=0.3)
    torch.nn.init.normal_(vae.post_quant_conv.weight, std=0.3)
    pixels = torch.randint(0, 256, (3, 3, 5, 16, 16), dtype=torch.uint8)
    latents = encode_all(vae, pixels)
    before = vae.decode(latents).sample
    recipe.note_scales(vae, latents)
    normalised = encode_all(vae, pixels)
    torch.testing.assert_close(normalised, recipe.normalised(latents, vae), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(normalised).sample, before, atol=1e-3, rtol=1e-3)
    assert vae.config.scaling_factor == 1


def test_a_tokenizer_is_the_same_whenever_it_is_made() -> None:
    """The stages may run in several processes, each of which makes its own."""
    words = [f"{first}{last}" for first in ("ca", "pi", "u", "o", "an") for last in ("r", "p", "nk", "ne", "d", "f")]
    tokenized = [make_clip_tokenizer(words, 16)(words).input_ids for _ in range(8)]
    assert all(tokens == tokenized[0] for tokens in tokenized)
    assert {len(tokens) for tokens in tokenized[0]} == {3}  # one between beginning and end
