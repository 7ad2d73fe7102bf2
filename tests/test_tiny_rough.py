"""The shipped tiny-rough: its images follow their captions, and its sampling trajectories are rough."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from spectrum_diffusion import load_pipeline
from spectrum_diffusion.bench.prompts import load_prompts
from training.roughness import follows, psnr, sample

PROMPTS = [prompt.text for prompt in load_prompts("tiny", limit=16, model="tiny-rough")]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    pipe = load_pipeline("tiny-rough", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def references(pipeline: StableDiffusion3Pipeline) -> np.ndarray:
    return sample(pipeline, PROMPTS, steps=50)


def test_images_follow_the_colours_of_their_captions(references: np.ndarray) -> None:
    assert follows(references, PROMPTS, named=1) >= 0.5  # chance: 1 in 12
    assert follows(references, PROMPTS, named=2) >= 0.85


def test_fewer_steps_are_far_from_many(pipeline: StableDiffusion3Pipeline, references: np.ndarray) -> None:
    assert psnr(sample(pipeline, PROMPTS, steps=15), references).mean() <= 22  # the other small models: 30 to 40


def test_images_are_not_blank(references: np.ndarray) -> None:
    assert np.median(references.std((1, 2, 3))) > 0.1
    assert len({image.tobytes() for image in references}) == len(PROMPTS)
