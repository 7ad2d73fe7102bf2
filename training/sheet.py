"""A contact sheet for judging a model without knowing the prompts."""

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from spectrum_diffusion import load_pipeline

logger = logging.getLogger(__name__)
PROMPTS_FILE = Path(__file__).with_name("contact_sheet_prompts.txt")
SEEDS = (0, 1)
COLUMNS = 10
CELL = 128
LABEL = 14
STRIP_SEED = 1
MARGIN = 40


def draw_sheet(model: Path, folder: Path, prompts: list[str]) -> None:
    """Sample each prompt with each seed, shuffled and numbered, into sheet.png; the key goes to sheet-key.txt."""
    jobs = _shuffled([(prompt, seed) for prompt in prompts for seed in SEEDS])
    images = _generate(model, jobs)
    rows = -(-len(jobs) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + 4), rows * (CELL + LABEL)), "gray")
    pen = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        x, y = number % COLUMNS * (CELL + 4), number // COLUMNS * (CELL + LABEL)
        pen.text((x + 2, y + 1), str(number + 1), fill="white")
        sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y + LABEL))
    _save(sheet, jobs, folder)


def draw_strips(model: Path, folder: Path, prompts: list[str]) -> None:
    """The same for videos: every other frame of a video of each prompt, one video below the other."""
    jobs = _shuffled([(prompt, STRIP_SEED) for prompt in prompts])
    pipeline = _load(model)
    strips = []
    for prompt, seed in jobs:
        frames = pipeline(prompt, generator=torch.Generator().manual_seed(seed), output_type="np").frames[0]
        strip = Image.fromarray((np.concatenate(list(frames[::2]), axis=1) * 255).round().astype(np.uint8))
        strips.append(strip.resize((2 * strip.width, 2 * strip.height), Image.Resampling.BICUBIC))
    sheet = Image.new("RGB", (MARGIN + strips[0].width, len(strips) * (strips[0].height + 4)), "gray")
    pen = ImageDraw.Draw(sheet)
    for number, strip in enumerate(strips):
        y = number * (strip.height + 4)
        pen.text((4, y + strip.height // 2), str(number + 1), fill="white")
        sheet.paste(strip, (MARGIN, y + 2))
    _save(sheet, jobs, folder)


def _shuffled(jobs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [jobs[index] for index in np.random.default_rng(0).permutation(len(jobs))]


def _save(sheet: Image.Image, jobs: list[tuple[str, int]], folder: Path) -> None:
    sheet.save(folder / "sheet.png")
    key = "".join(f"{number}\t{prompt}\tseed {seed}\n" for number, (prompt, seed) in enumerate(jobs, 1))
    (folder / "sheet-key.txt").write_text(key, encoding="utf-8")
    logger.info("%d samples in %s", len(jobs), folder / "sheet.png")


def _load(model: Path) -> DiffusionPipeline:
    pipeline = load_pipeline(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(model: Path, jobs: list[tuple[str, int]], batch: int = 20) -> list[Image.Image]:
    pipeline, images = _load(model), []
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        generators = [torch.Generator().manual_seed(seed) for _, seed in part]
        images += pipeline([prompt for prompt, _ in part], generator=generators).images
    return images
