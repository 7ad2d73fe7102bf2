"""Random crops of large images in random colours, with captions computed from their pixels."""

import functools
import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.debian import Source

# sRGB values of the colour words in captions.
PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 18),
    "grey": (128, 128, 128),
    "white": (242, 242, 240),
    "red": (205, 35, 40),
    "orange": (240, 135, 35),
    "brown": (115, 70, 35),
    "yellow": (240, 215, 60),
    "green": (50, 150, 60),
    "teal": (40, 170, 175),
    "blue": (45, 85, 200),
    "purple": (125, 60, 170),
    "pink": (240, 140, 185),
}
KINDS = ("photograph", "drawing", "texture")
BRIGHTNESS = ("dark", "", "bright")
DETAIL = ("smooth", "", "detailed")
SECOND = ("", *PALETTE)
DIMENSIONS = (KINDS, BRIGHTNESS, DETAIL, tuple(PALETTE), SECOND)
"""The parts of a caption, and the words for each."""


@dataclass(frozen=True)
class CropConfig:
    """How many crops of each kind, and how much they vary."""

    each: int = 16_000
    held_out: int = 512
    side: int = 56  # pixels; windows of 48 are trained on
    largest: int = 640
    together: int = 64  # crops of one scale
    flat: float = 2.0  # detail below which another crop is tried
    tries: int = 4
    second: float = 0.2  # smallest share of the pixels for which a caption names a second colour
    seed: int = 0


@dataclass(frozen=True)
class Crops:
    """Crops with the indices of the words of their captions.

    Attributes:
        pixels: uint8 (N, 3, side, side).
        words: int64 (N, 5), one index for each of `DIMENSIONS`.
    """

    pixels: torch.Tensor
    words: torch.Tensor

    @property
    def shown(self) -> tuple[torch.Tensor, ...]:
        """What the crops show: the first dimensions of the table of prompts."""
        return self.words.unbind(1)


def is_held_out(path: Path) -> bool:
    """Whether the image is held out of training: one image in eight."""
    return number(path) % 8 == 0


def number(path: Path) -> int:
    """A hash of the last four parts of the path, which do not depend on where the package was unpacked."""
    return zlib.crc32("/".join(path.parts[-4:]).encode())


def crops_of(image: Image.Image, count: int, config: CropConfig, rng: np.random.Generator) -> np.ndarray:
    """`count` crops of `image` at several random scales: uint8 (count, side, side, 3)."""
    parts = []
    for start in range(0, count, config.together):
        scaled = on_a_colour(scale(image, config, rng), rng)
        parts.append(recolour(cut(scaled, min(config.together, count - start), config, rng), rng))
    return np.concatenate(parts)


def scale(image: Image.Image, config: CropConfig, rng: np.random.Generator) -> Image.Image:
    """`image` at a random size: its own, or smaller, so that a crop shows more of it."""
    most = max(1.0, min(*image.size, config.largest) / config.side)
    factor = float(np.exp(rng.uniform(0, np.log(most)))) * min(1.0, min(image.size) / config.side)
    size = tuple(max(config.side, round(length / factor)) for length in image.size)
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def on_a_colour(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """`image` composited on a random colour: uint8 (H, W, 3)."""
    if image.mode == "RGBA":
        ground = Image.new("RGB", image.size, tuple(int(value) for value in rng.integers(256, size=3)))
        ground.paste(image, mask=image)
        image = ground
    return np.asarray(image)


def cut(pixels: np.ndarray, count: int, config: CropConfig, rng: np.random.Generator) -> np.ndarray:
    """`count` random squares, rotated and mirrored; flat ones only where a few tries find nothing better."""
    crops = []
    for _ in range(count):
        for _ in range(config.tries):
            top, left = (int(rng.integers(length - config.side + 1)) for length in pixels.shape[:2])
            crop = pixels[top : top + config.side, left : left + config.side]
            if detail(crop) >= config.flat:
                break
        crop = np.rot90(crop, int(rng.integers(4)))
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(crops)


def detail(pixels: np.ndarray) -> float:
    """Mean difference of the green channel between neighbouring pixels."""
    green = pixels[..., 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean()) / 2


def recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crops with stretched contrast and random channel order, saturation, inversion, gamma and brightness."""
    count = len(pixels)

    def each(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)

    order = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)[:, None, None]
    values = np.take_along_axis(pixels, order, axis=-1).astype(np.float32)
    low, high = np.percentile(values[:, ::2, ::2], (2, 98), axis=(1, 2, 3), keepdims=True).astype(np.float32)
    values = (values - low) / np.maximum(high - low, 32)
    grey = values.mean(-1, keepdims=True)
    values = np.clip(grey + each(0.6, 2.5) * (values - grey), 0, 1)
    values = np.where(each(0, 1) < 0.3, 1 - values, values)
    values = values ** np.exp(each(-0.8, 0.8)) * each(0.75, 1)
    return (255 * values).round().astype(np.uint8)


def oklab(pixels: np.ndarray) -> np.ndarray:
    """sRGB values from 0 to 255 in Oklab, where distances match perception (Ottosson, 2020): (…, 3)."""
    values = np.asarray(pixels, np.float32) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES.T)
    return cones @ _TO_LAB.T


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)


@functools.cache
def nearest_colours() -> np.ndarray:
    """The index of the nearest colour of the palette, for colours of five bits a channel: (32, 32, 32)."""
    palette = oklab(np.array(list(PALETTE.values())))
    levels = np.arange(32) * 8 + 4
    lab = oklab(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1))
    return np.square(lab[..., None, :] - palette).sum(-1).argmin(-1)


def colour_shares(pixels: np.ndarray) -> np.ndarray:
    """The share of the uint8 pixels (…, 3) that is nearest to each colour of the palette."""
    red, green, blue = np.moveaxis(pixels >> 3, -1, 0)
    return np.bincount(nearest_colours()[red, green, blue].ravel(), minlength=len(PALETTE)) / red.size


def describe(pixels: np.ndarray, kind: str, config: CropConfig) -> tuple[int, ...]:
    """The indices of the words for a crop (side, side, 3), in the order of `DIMENSIONS`."""
    shares = colour_shares(pixels)
    second, main = np.argsort(shares)[-2:]
    light = pixels.mean() / 255
    rough = detail(pixels)
    return (
        KINDS.index(kind),
        int(light > 0.33) + int(light > 0.6),
        int(rough > 8) + int(rough > 18),
        int(main),
        int(second) + 1 if shares[second] >= config.second else 0,
    )


def crops_of_kind(sources: list[tuple[Source, Path]], config: CropConfig, held_out: bool) -> Crops:
    """All crops of the files of one kind, spread evenly over the files."""
    chosen = [(source.kind, path) for source, path in sources if is_held_out(path) == held_out]
    count = config.held_out if held_out else config.each
    pixels, words = [], []
    for index, (kind, path) in enumerate(chosen):
        rng = np.random.default_rng([config.seed, number(path)])
        image = open_image(path)
        share = count * (index + 1) // len(chosen) - count * index // len(chosen)
        if share:
            pixels.append(crops_of(image, share, config, rng))
            words += [describe(crop, kind, config) for crop in pixels[-1]]
    stacked = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).contiguous()
    return Crops(stacked, torch.tensor(words))


def open_image(path: Path) -> Image.Image:
    """The image; PNG files keep their transparency."""
    with Image.open(path) as image:
        return image.convert("RGBA" if path.suffix == ".png" else "RGB")


def is_unseen(words: torch.Tensor) -> torch.Tensor:
    """Whether a combination of words (…, 5) is left out of training: one in eight, for the list of prompts."""
    place = torch.zeros_like(words[..., 0])
    for column, dimension in zip(words.unbind(-1), DIMENSIONS, strict=True):
        place = place * len(dimension) + column
    return (place * 2_654_435_761 >> 16) % 8 == 0


def prompts(words: torch.Tensor, each: int) -> list[tuple[str, str]]:
    """Captions of unseen combinations with their kinds: up to `each` of every main colour, the colours in turn.

    Only combinations that occur among the crops and use every part, so that no other combination has the same text.
    """
    unique, counts = words[is_unseen(words)].unique(dim=0, return_counts=True)
    frequent = [tuple(row) for row in unique[counts.argsort(descending=True, stable=True)].tolist()]
    chosen = []
    for main in range(len(PALETTE)):
        rows = [row for row in frequent if row[3] == main and all(whole_words(row))]
        chosen += list(enumerate(rows[:each]))
    in_turn = [row for _, row in sorted(chosen, key=lambda pair: pair[0])]
    return [(join(*whole_words(row)), KINDS[row[0]]) for row in in_turn]


def whole_words(row: tuple[int, ...]) -> tuple[str, ...]:
    """The words of `row`, in the order of `DIMENSIONS`."""
    return tuple(dimension[index] for index, dimension in zip(row, DIMENSIONS, strict=True))


def captions(forms: int, rng: np.random.Generator) -> list[str]:
    """`forms` captions for every combination of words, in the order of `DIMENSIONS`.

    Each omits some parts at random, so that captions leave most of the image open.
    """
    combinations = itertools.product(*DIMENSIONS)
    return [caption(*combination, rng) for combination in combinations for _ in range(forms)]


def caption(kind: str, brightness: str, detail: str, main: str, second: str, rng: np.random.Generator) -> str:
    """A caption with some parts omitted at random, but never the main colour."""
    brightness, detail, second, kind = (
        word if rng.random() < kept else ""
        for word, kept in ((brightness, 0.6), (detail, 0.6), (second, 0.6), (kind, 0.8))
    )
    return join(kind, brightness, detail, main, second)


def join(kind: str, brightness: str, detail: str, main: str, second: str) -> str:
    """The words that are not empty, in the order of captions."""
    colours = f"{main} and {second}" if second else main
    return " ".join(filter(None, (brightness, detail, colours, kind)))


def words() -> list[str]:
    """Every word that a caption can hold."""
    return sorted({word for dimension in DIMENSIONS for word in dimension if word} | {"and"})
