"""The concepts of ``concepts.csv`` that a model learns, their colours, backgrounds and prompts."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONCEPTS_FILE = Path(__file__).with_name("concepts.csv")

# Hue in degrees, then factors for saturation and value.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (4, 1.0, 0.95),
    "orange": (28, 1.0, 1.05),
    "yellow": (50, 0.95, 1.15),
    "green": (125, 0.85, 0.75),
    "blue": (215, 0.95, 0.95),
    "purple": (280, 0.8, 0.8),
    "pink": (335, 0.5, 1.1),
    "black": (0, 0.0, 0.3),
}

# Paler than the objects, so that a red apple is visible on red.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (38, 38, 42),
    "red": (236, 112, 110),
    "yellow": (252, 230, 120),
    "green": (140, 210, 140),
    "blue": (120, 180, 245),
    "purple": (190, 150, 235),
    "pink": (255, 190, 215),
}

PLAIN_FORMS = (
    "{p}",
    "{p}",
    "{a} {p}",
    "{a} {p}",
    "a picture of {a} {p}",
    "{p} on white",
    "{a} {p} on a white background",
)
COLOUR_FORMS = (
    "{p} on {b}",
    "{a} {p} on {b}",
    "{p} on a {b} background",
    "{a} {p} on a {b} background",
    "{p}, {b} background",
)


@dataclass(frozen=True)
class Concept:
    """A row of the list: two names, the emoji, its own colour, and whether it may be recoloured or mirrored."""

    name: str
    also: str
    emoji: str
    colour: str
    recolour: bool
    mirror: bool


@dataclass(frozen=True)
class Subject:
    """A concept in its own colours (`colour` None) or in a named colour."""

    concept: Concept
    colour: str | None


def read_concepts(path: Path = CONCEPTS_FILE) -> list[Concept]:
    """The rows of the list, in order."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [_concept(row) for row in rows]


def _concept(row: dict[str, str]) -> Concept:
    flags = (row[name] == "yes" for name in ("recolour", "mirror"))
    return Concept(row["name"], row["also"], row["emoji"], row["colour"], *flags)


def choose(concepts: list[Concept], names: tuple[str, ...]) -> list[Concept]:
    """The concepts called `names`, in the order of the list; all concepts if `names` is empty."""
    unknown = set(names) - {concept.name for concept in concepts}
    if unknown:
        raise ValueError(f"no concept is called {', '.join(sorted(unknown))}: see {CONCEPTS_FILE.name}")
    return [concept for concept in concepts if not names or concept.name in names]


def subjects(concepts: list[Concept]) -> list[Subject]:
    """Every concept in its own colours; those that may be recoloured also in every other colour."""
    plain = [Subject(concept, None) for concept in concepts]
    recoloured = [
        Subject(concept, colour)
        for concept in concepts
        if concept.recolour
        for colour in COLOURS
        if colour != concept.colour
    ]
    return plain + recoloured


def prompt(subject: Subject, background: str, rng: np.random.Generator) -> str:
    """A random wording of a prompt for `subject` on `background`; a prompt without background means white."""
    concept = subject.concept
    name = concept.also if concept.also and rng.random() < 0.25 else concept.name
    colour = subject.colour or (concept.colour if rng.random() < 0.4 else "")
    phrase = f"{colour} {name}".strip()
    forms = PLAIN_FORMS if background == "white" else COLOUR_FORMS
    article = "an" if phrase[0] in "aeiou" and not phrase.startswith(("uni", "ufo")) else "a"
    text = forms[rng.integers(len(forms))].format(p=phrase, a=article, b=background)
    return text[0].upper() + text[1:] if rng.random() < 0.15 else text


def words(concepts: list[Concept]) -> list[str]:
    """Every word that a prompt can contain, in lower case, sorted."""
    texts = [*COLOURS, *BACKGROUNDS, "a an the and with emoji picture of on background"]
    for concept in concepts:
        texts += [concept.name, concept.also]
    return sorted({word for text in texts for word in text.replace("-", " ").split()})
