"""Draw the training videos, emoji that drift, spin, bounce, grow or shrink, and their prompts."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from training.concepts import BACKGROUNDS, Concept

# Easy to tell apart in 48×48 pixels.
CONCEPTS = (
    "apple",
    "banana",
    "strawberry",
    "watermelon",
    "carrot",
    "mushroom",
    "burger",
    "pizza",
    "panda",
    "pig",
    "frog",
    "penguin",
    "fish",
    "butterfly",
    "smiley",
    "pumpkin",
    "car",
    "airplane",
    "balloon",
    "soccer ball",
    "star",
    "heart",
    "sunflower",
    "crown",
)
GROUNDS = ("white", "blue", "yellow", "green")
FORMS = ("{p} {m}", "{a} {p} {m}", "{p} {m} on {b}", "{a} {p} {m} on {b}", "{a} {p} {m} on a {b} background")
SIZE, FRAMES = 48, 13


@dataclass(frozen=True)
class Pose:
    """Position of the object in a frame: shifts and side as shares of the frame's side, angle in degrees."""

    x: float = 0.0
    y: float = 0.0
    side: float = 0.62
    angle: float = 0.0


# From the time, 0 to 1, to the pose. The names are words of the prompts.
MOTIONS: dict[str, Callable[[float], Pose]] = {
    "moving left": lambda t: Pose(x=0.19 - 0.38 * t),
    "moving right": lambda t: Pose(x=0.38 * t - 0.19),
    "moving up": lambda t: Pose(y=0.19 - 0.38 * t),
    "moving down": lambda t: Pose(y=0.38 * t - 0.19),
    "spinning": lambda t: Pose(side=0.68, angle=-360 * t),
    "bouncing": lambda t: Pose(y=0.19 - 0.38 * abs(math.sin(2 * math.pi * t))),
    "growing": lambda t: Pose(side=0.35 + 0.6 * t),
    "shrinking": lambda t: Pose(side=0.95 - 0.6 * t),
}


@dataclass(frozen=True)
class VideoConfig:
    """Number of videos per concept and motion, and how far they deviate."""

    variants: int = 12
    shift: float = 0.04
    scale: float = 0.06
    seed: int = 0


@dataclass(frozen=True)
class Videos:
    """All variants, with the indices of what they show.

    Attributes:
        pixels: uint8 (N, 3, 13, 48, 48).
        subject, background, motion: int64 (N,), indices into the concepts, `GROUNDS` and `MOTIONS`.
    """

    pixels: torch.Tensor
    subject: torch.Tensor
    background: torch.Tensor
    motion: torch.Tensor

    @property
    def shown(self) -> tuple[torch.Tensor, ...]:
        """Indices into the first dimensions of the table of prompts."""
        return self.subject, self.background, self.motion


def frame(picture: Image.Image, pose: Pose, background: str) -> np.ndarray:
    """`picture` in one pose: uint8 (48, 48, 3). Drawn at twice the size, so that it moves by half pixels."""
    large = 2 * SIZE
    canvas = Image.new("RGB", (large, large), BACKGROUNDS[background])
    side = round(large * pose.side)
    small = picture.rotate(pose.angle, Image.Resampling.BICUBIC) if pose.angle else picture
    small = small.resize((side, side), Image.Resampling.LANCZOS)
    corner = (round((large - side) / 2 + large * pose.x), round((large - side) / 2 + large * pose.y))
    canvas.paste(small, corner, small)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def draw(
    picture: Image.Image, motion: str, background: str, rng: np.random.Generator, config: VideoConfig
) -> np.ndarray:
    """One variant: uint8 (13, 48, 48, 3)."""
    x, y = rng.uniform(-config.shift, config.shift, 2)
    scale = 1 + rng.uniform(-config.scale, config.scale)
    poses = [MOTIONS[motion](index / (FRAMES - 1)) for index in range(FRAMES)]
    moved = [Pose(pose.x + x, pose.y + y, pose.side * scale, pose.angle) for pose in poses]
    return np.stack([frame(picture, pose, background) for pose in moved])


def draw_all(concepts: list[Concept], originals: dict[str, Image.Image], config: VideoConfig) -> Videos:
    """Every concept in every motion, on the backgrounds in turn; half of them mirrored if the concept may be."""
    pixels, shown = [], []
    for subject, concept in enumerate(concepts):
        rng = np.random.default_rng([config.seed, zlib.crc32(concept.name.encode())])
        sides = [originals[concept.emoji]] * 2
        if concept.mirror:
            sides[1] = sides[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for number, motion in enumerate(MOTIONS):
            for variant in range(config.variants):
                background = variant % len(GROUNDS)
                side = sides[variant // len(GROUNDS) % 2]
                pixels.append(draw(side, motion, GROUNDS[background], rng, config))
                shown.append((subject, background, number))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3).contiguous()  # (N, 3, 13, 48, 48)
    return Videos(stacked, *torch.tensor(shown).unbind(1))


def prompt(concept: Concept, background: str, motion: str, rng: np.random.Generator) -> str:
    """A random wording of a prompt for `concept` in `motion`; a prompt without background means white."""
    colour = concept.colour if rng.random() < 0.3 else ""
    phrase = f"{colour} {concept.name}".strip()
    forms = FORMS if background == "white" else FORMS[2:]
    article = "an" if phrase[0] in "aeiou" else "a"
    return forms[rng.integers(len(forms))].format(p=phrase, a=article, m=motion, b=background)


def words() -> list[str]:
    """The words of the motions."""
    return sorted({word for motion in MOTIONS for word in motion.split()})
