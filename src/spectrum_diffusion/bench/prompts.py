"""Lists of prompts by name or file: the benchmarks of the paper, and those of the small models that ship."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidOptionError, MissingPackageError
from ..loading import small_models
from .metrics.programs.environment import environment_of

T = TypeVar("T")

TINY_FILE = Path(__file__).parents[1] / "assets" / "tiny_prompts.csv"
MODEL_FILE = "prompts.csv"
"""In the folder of a small model that knows other things than the rest."""
VBENCH_FILE = "VBench_full_info.json"

TEXT_COLUMNS = ("prompt", "prompts", "prompt_en", "text", "caption")
CATEGORY_COLUMNS = ("category", "dimension")


@dataclass(frozen=True)
class Prompt:
    """What to draw; ``category`` (or VBench's dimensions, joined by commas) is empty where the list gives none."""

    text: str
    category: str = ""


def load_prompts(source: str | Path, limit: int | None = None, *, model: str = "") -> list[Prompt]:
    """The prompts of a list, in its order.

    Args:
        source: ``drawbench``, ``coco``, ``vbench``, ``tiny``, or a file: ``.txt`` with one prompt a line, or
            ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` with a column "prompt" and perhaps "category"; COCO's own files
            of captions and VBench's of prompts are known too.
        limit: at most so many, from the beginning; None for all.
        model: name or folder of the small model that is to draw them: ``tiny`` is its own list, if it has one.

    Raises:
        InvalidOptionError: no such list or file, or nothing in it that can be read as prompts.
        MissingPackageError: the list comes in a package that is not here.
    """
    if limit is not None and limit < 1:
        raise InvalidOptionError(f"limit={limit} leaves no prompt: give a number ≥ 1, or None for all")
    known = SOURCES.get(str(source).lower())
    prompts = known(model) if known else read_file(Path(source))
    return prompts[:limit]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most so many, evenly over a list, since lists are ordered by kind."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def read_file(path: Path) -> list[Prompt]:
    """The prompts of a file; see :func:`load_prompts`."""
    if not path.is_file():
        raise InvalidOptionError(
            f"there is no list and no file of prompts {str(path)!r}: give one of {', '.join(SOURCES)}, or a file"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        prompts = _from_records(_PARSERS.get(path.suffix.lower(), _lines)(text), str(path))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InvalidOptionError(
            f"{path} can't be read as {path.suffix or 'text'} ({error}): see load_prompts"
        ) from error
    if not prompts:
        raise InvalidOptionError(f"{path} holds no prompt: write one a line")
    return prompts


def _from_records(records: Iterable[Any], name: str) -> list[Prompt]:
    return [prompt for record in records if (prompt := _prompt(record, name)).text]


def _prompt(record: Any, name: str) -> Prompt:
    if isinstance(record, str):
        return Prompt(record.strip())
    fields = {str(key).strip().lower(): value for key, value in record.items()} if isinstance(record, dict) else {}
    text = next((fields[column] for column in TEXT_COLUMNS if column in fields), None)
    if not isinstance(text, str):
        raise InvalidOptionError(
            f"{name} has an entry without a text named {' or '.join(TEXT_COLUMNS)}: {record!r:.80}"
        )
    category = next((fields[column] for column in CATEGORY_COLUMNS if fields.get(column)), "")
    return Prompt(text.strip(), category if isinstance(category, str) else ",".join(map(str, category)))


def _lines(text: str) -> list[str]:
    return text.splitlines()


def _json(text: str) -> list[Any]:
    found = json.loads(text)
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        return _coco_captions(found["annotations"])
    return found if isinstance(found, list) else [found]


def _coco_captions(annotations: list[dict[str, Any]]) -> list[Any]:
    """The first caption of each picture, in the order of the file."""
    by_picture: dict[Any, str] = {}
    for one in annotations:
        by_picture.setdefault(one.get("image_id"), one.get("caption", ""))
    return list(by_picture.values())


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _table(delimiter: str) -> Callable[[str], list[Any]]:
    return lambda text: list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


_PARSERS: dict[str, Callable[[str], list[Any]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}


@dataclass(frozen=True)
class HubList:
    """A list of prompts on the Hub, read with the package ``datasets``; nothing of it ships with this library.

    Attributes:
        repository: its id there, or a folder with a copy of it.
        split: which part.
        columns: of the texts, and of the categories or "".
    """

    repository: str
    split: str
    columns: tuple[str, str]

    def __call__(self, model: str = "") -> list[Prompt]:
        try:
            import datasets
        except ImportError:
            raise MissingPackageError(
                f"the prompts of {self.repository} need the package datasets: "
                "pip install 'spectrum-diffusion[prompts]', or give a file of prompts"
            ) from None
        wanted = [name for name in self.columns if name]
        try:
            table = datasets.load_dataset(self.repository, split=self.split)
            rows = zip(*(table[name] for name in wanted), strict=True)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise InvalidOptionError(
                f"the prompts {self.repository} (split {self.split}, columns {', '.join(wanted)}) can't be loaded: "
                f"{str(error).splitlines()[0]}; go online once, or give a file of prompts"
            ) from error
        return [Prompt(_first(text).strip(), *categories) for text, *categories in rows]


def _first(text: str | list[str]) -> str:
    """COCO has several captions a picture: the first stands for it."""
    return text if isinstance(text, str) else text[0]


def _vbench(model: str) -> list[Prompt]:
    for file in _vbench_files():
        if file.is_file():
            return read_file(file)
    raise MissingPackageError(
        "the prompts of VBench come in the package vbench: pip install --no-deps vbench "
        "(it is read, not imported), or give a file of prompts"
    )


def _vbench_files() -> Iterable[Path]:
    """In this environment, or in that of the program which computes its metrics."""
    spec = importlib.util.find_spec("vbench")  # of a top-level package: finding it imports nothing
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / VBENCH_FILE
    yield from sorted(environment_of("vbench").glob(f"lib/python*/site-packages/vbench/{VBENCH_FILE}"))


def _tiny(model: str) -> list[Prompt]:
    """What the small model knows: its own list, or the one of those that know all things of the training set."""
    own = small_models().get(model, Path(model)) / MODEL_FILE
    return read_file(own if own.is_file() else TINY_FILE)


DRAWBENCH = HubList("sayakpaul/drawbench", "train", ("Prompts", "Category"))
"""Saharia et al.: Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022; 200 prompts."""

COCO = HubList("phiyodr/coco2017", "validation", ("captions", ""))
"""Lin et al.: Microsoft COCO, 2014: the captions of the 5000 pictures of 2017's validation part."""

SOURCES: dict[str, Callable[[str], list[Prompt]]] = {
    "drawbench": DRAWBENCH,
    "coco": COCO,
    "vbench": _vbench,
    "tiny": _tiny,
}
"""The lists known by name, each asked for with the name of the model that is to draw them."""
