"""What the card of tiny-rough claims: ``python -m training.roughness``.

The loss on crops of pictures that were never trained on, the share of images in the colour that was asked for, and how
far 15 steps lead from 50.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

from spectrum_diffusion import load_pipeline
from spectrum_diffusion.bench.prompts import load_prompts
from training import crops
from training.crops import Crops
from training.denoiser import draw_batch
from training.recipe import ROOT
from training.tiny_rough import TinyRoughRecipe
from training.tiny_sd3 import TinySD3
from training.vae import encode_all, to_unit

BATCHES = 64
BATCH = 64


def main_colour(pixels: np.ndarray) -> str:
    """The colour word of the palette that most pixels of an image (H, W, 3), 0 to 1, are nearest to."""
    return list(crops.PALETTE)[int(crops.colour_shares((255 * pixels).round().astype(np.uint8)).argmax())]


def asked_colour(prompt: str) -> str:
    """The main colour of a caption: the first colour word."""
    return next(word for word in prompt.split() if word in crops.PALETTE)


def sample(pipe: StableDiffusion3Pipeline, prompts: list[str], steps: int, batch: int = 16) -> np.ndarray:
    """One image of every prompt, the place in the list as seed: (N, H, W, 3)."""
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + place) for place in range(len(part))]
        images.append(pipe(part, generator=generators, num_inference_steps=steps, output_type="np").images)
    return np.concatenate(images)


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Of every image, in dB."""
    return -10 * np.log10(np.square(images - references).mean((1, 2, 3)))


@torch.no_grad()
def loss(pipe: StableDiffusion3Pipeline, recipe: TinyRoughRecipe, shown: Crops) -> float:
    """The mean squared error on seeded draws of crops, none of them without a caption."""
    clips = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2])
    model, config = TinySD3(pipe.transformer, clips, pipe.text_encoder_3), recipe.config.denoiser
    latents = recipe.normalised(encode_all(pipe.vae, shown.pixels), pipe.vae)
    data, ones = recipe.with_prompts(latents, shown.shown), torch.ones(BATCH)
    losses = []
    for seed in range(BATCHES):
        batch = draw_batch(data, BATCH, config, seed, 0.0)
        output = model(batch.noisy, batch.times, ones, batch.prompts)
        losses.append(config.process.loss(output, batch.target, batch.times))
    return float(torch.stack(losses).mean())


def follows(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> float:
    """The share of images whose main colour is the one that was asked for."""
    images = sample(pipe, prompts, steps=50)
    return float(
        np.mean([main_colour(image) == asked_colour(text) for image, text in zip(images, prompts, strict=True)])
    )


def kept(pipe: StableDiffusion3Pipeline, shown: Crops) -> float:
    """The share of crops whose main colour the autoencoder keeps: the most that `follows` can be expected to reach."""
    with torch.no_grad():
        again = pipe.vae.decode(pipe.vae.encode(to_unit(shown.pixels)).latent_dist.mean).sample
    images = (again.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    names = list(crops.PALETTE)
    return float(np.mean([main_colour(image) == names[row[3]] for image, row in zip(images, shown.words, strict=True)]))


def every(shown: Crops, step: int) -> Crops:
    """A part of the crops, spread over all of them."""
    return Crops(shown.pixels[::step], shown.words[::step])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=TinyRoughRecipe.name, help="name or folder of the pipeline")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / TinyRoughRecipe.name, help="the data is here")
    parser.add_argument("--guidance", type=float, help="another scale than the model's own")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    recipe = TinyRoughRecipe(TinyRoughRecipe.config, args.work_dir, Path(args.model))
    held_out = recipe.data(held_out=True)
    trained = every(recipe.data(), 64)
    print(f"loss: {loss(pipe, recipe, held_out):.3f} on held-out pictures, {loss(pipe, recipe, trained):.3f} on others")
    print(f"main colour kept by the autoencoder: {kept(pipe, every(held_out, 8)):.0%}")
    prompts = [prompt.text for prompt in load_prompts("tiny", model=args.model)]
    print(f"main colour as asked for: {follows(pipe, prompts):.0%} of {len(prompts)} prompts")
    references = sample(pipe, prompts, steps=50)
    for steps in (10, 15, 25):
        values = psnr(sample(pipe, prompts, steps), references)
        print(f"{steps} steps: {values.mean():.1f} dB to 50 steps, from {values.min():.1f} to {values.max():.1f}")


if __name__ == "__main__":
    main()
