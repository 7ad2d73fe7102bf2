"""Measure what the card of tiny-rough claims: ``python -m training.roughness``.

The loss on crops of held-out images, the share of generated images in the colours of their captions, and the PSNR of
few steps to 50.
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

BATCHES = 16
BATCH = 64


def main_colour(pixels: np.ndarray) -> str:
    """The colour word of the palette that most pixels of an image (H, W, 3), 0 to 1, are nearest to."""
    return list(crops.PALETTE)[int(crops.colour_shares((255 * pixels).round().astype(np.uint8)).argmax())]


def named_colours(prompt: str) -> list[str]:
    """The colour words of a caption; the first is the main colour."""
    return [word for word in prompt.split() if word in crops.PALETTE]


def sample(pipe: StableDiffusion3Pipeline, prompts: list[str], steps: int, batch: int = 16) -> np.ndarray:
    """One image per prompt, with its place in the list as seed: (N, H, W, 3)."""
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + place) for place in range(len(part))]
        images.append(pipe(part, generator=generators, num_inference_steps=steps, output_type="np").images)
    return np.concatenate(images)


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """PSNR of each image, in dB."""
    return -10 * np.log10(np.square(images - references).mean((1, 2, 3)))


@torch.no_grad()
def loss(pipe: StableDiffusion3Pipeline, recipe: TinyRoughRecipe, shown: Crops) -> float:
    """The mean squared error on seeded batches of crops, all with captions."""
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


def follows(images: np.ndarray, prompts: list[str], named: int) -> float:
    """The share of images whose main colour is among the first `named` colour words of their caption."""
    pairs = zip(images, prompts, strict=True)
    return float(np.mean([main_colour(image) in named_colours(text)[:named] for image, text in pairs]))


def kept(pipe: StableDiffusion3Pipeline, shown: Crops) -> float:
    """The share of crops whose main colour the autoencoder keeps: an upper bound for `follows`."""
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
    parser.add_argument("--shift", type=float, help="of the scheduler, instead of the model's own")
    args = parser.parse_args()
    pipe = load_pipeline(args.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if args.shift is not None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=args.shift)
    recipe = TinyRoughRecipe(TinyRoughRecipe.config, args.work_dir, Path(args.model))
    held_out = recipe.data(held_out=True)
    trained = every(recipe.data(), 64)
    print(f"loss: {loss(pipe, recipe, held_out):.3f} on held-out images, {loss(pipe, recipe, trained):.3f} on others")
    print(f"main colour kept by the autoencoder: {kept(pipe, every(held_out, 8)):.0%}")
    prompts = [prompt.text for prompt in load_prompts("tiny", model=args.model)]
    references = sample(pipe, prompts, steps=50)
    main_named, any_named = (follows(references, prompts, named) for named in (1, 2))
    print(f"{len(prompts)} captions: the main colour is that of the caption in {main_named:.0%}, ", end="")
    print(f"one of its two colours in {any_named:.0%} (chance: {1 / len(crops.PALETTE):.0%})")
    for steps in (10, 15, 25):
        values = psnr(sample(pipe, prompts, steps), references)
        print(f"{steps} steps: {values.mean():.1f} dB to 50 steps, from {values.min():.1f} to {values.max():.1f}")


if __name__ == "__main__":
    main()
