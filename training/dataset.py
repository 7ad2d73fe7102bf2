"""Draw the training images: seeded variants of every subject, with other positions, sizes and backgrounds."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from training.concepts import BACKGROUNDS, COLOURS, Subject

SIZE = 64
HUE_WIDTH = 38.0  # hues this many degrees from an object's main hue are recoloured with it


@dataclass(frozen=True)
class VariantConfig:
    """Number of images per subject, and how far they differ from the original."""

    plain: int = 128
    recoloured: int = 64
    smallest: float = 0.8
    largest: float = 0.97
    shift: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Images:
    """All variants, with the indices of what they show.

    Attributes:
        pixels: uint8 (N, 3, 64, 64).
        subject: int64 (N,), index into the list of subjects.
        background: int64 (N,), index into the names of the backgrounds.
    """

    pixels: torch.Tensor
    subject: torch.Tensor
    background: torch.Tensor

    @property
    def shown(self) -> tuple[torch.Tensor, ...]:
        """Indices into the first dimensions of the table of prompts."""
        return self.subject, self.background


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """`picture` with its main hue changed to `colour`; other hues, greys and shading stay."""
    hue, saturation, value = COLOURS[colour]
    alpha = np.asarray(picture)[..., 3]
    hsv = np.asarray(picture.convert("RGB").convert("HSV")).astype(np.float32)
    degrees = hsv[..., 0] * (360 / 256)
    weight = np.clip((hsv[..., 1] - 40) / 60, 0, 1)
    main = _main_hue(degrees, weight * (alpha > 128))
    offset = (degrees - main + 180) % 360 - 180
    mask = weight * np.clip((HUE_WIDTH + 12 - np.abs(offset)) / 12, 0, 1)
    target = np.stack([(hue + 0.3 * offset) % 360 * (256 / 360), hsv[..., 1] * saturation, hsv[..., 2] * value], -1)
    target = np.clip(target, 0, 255).astype(np.uint8)
    turned = np.asarray(Image.fromarray(target, "HSV").convert("RGB")).astype(np.float32)
    original = np.asarray(picture.convert("RGB")).astype(np.float32)
    mixed = original + mask[..., None] * (turned - original)
    return Image.fromarray(np.dstack([mixed.round().astype(np.uint8), alpha]), "RGBA")


def _main_hue(degrees: np.ndarray, weight: np.ndarray) -> float:
    histogram, _ = np.histogram(degrees, bins=36, range=(0, 360), weights=weight)
    smooth = histogram + 0.7 * (np.roll(histogram, 1) + np.roll(histogram, -1))
    return float(smooth.argmax() * 10 + 5)


def draw(
    picture: Image.Image, background: str, rng: np.random.Generator, mirror: bool, config: VariantConfig
) -> np.ndarray:
    """One variant of `picture` on `background`: uint8 (64, 64, 3)."""
    if mirror and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = round(SIZE * rng.uniform(config.smallest, config.largest))
    room = (SIZE - side) // 2
    reach = min(config.shift, room)
    x, y = (room + int(rng.integers(-reach, reach + 1)) for _ in range(2))
    canvas = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[background])
    small = picture.resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(small, (x, y), small)
    return np.asarray(canvas)


def draw_all(subjects: list[Subject], originals: dict[str, Image.Image], config: VariantConfig) -> Images:
    """Every variant of every subject: half on white, the others on the other backgrounds in turn."""
    names = list(BACKGROUNDS)
    pixels, subject_index, background_index = [], [], []
    for index, subject in enumerate(subjects):
        concept = subject.concept
        rng = np.random.default_rng([config.seed, zlib.crc32(f"{subject.colour} {concept.name}".encode())])
        picture = originals[concept.emoji]
        if subject.colour is not None:
            picture = recolour(picture, subject.colour)
        for variant in range(config.plain if subject.colour is None else config.recoloured):
            background = 0 if variant % 2 == 0 else 1 + variant // 2 % (len(names) - 1)
            pixels.append(draw(picture, names[background], rng, concept.mirror, config))
            subject_index.append(index)
            background_index.append(background)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()  # (N, 3, 64, 64)
    return Images(stacked, torch.tensor(subject_index), torch.tensor(background_index))
