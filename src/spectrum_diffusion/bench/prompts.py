"""Prompt lists by name, from a file or from stdin: the paper's benchmarks, and the lists of the small models."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..core.words import did_you_mean
from ..errors import InvalidOptionError, MissingPackageError, SpectrumWarning
from ..loading import named_models
from ..untrusted import parse_json
from .metrics.programs.environment import environment_of

T = TypeVar("T")

TINY_FILE = Path(__file__).parents[1] / "assets" / "tiny_prompts.csv"
MODEL_FILE = "prompts.csv"
"""The list of a small model that was trained on other concepts; it lies in the model's folder."""
STDIN = "-"
"""The source that stands for standard input."""
VBENCH_FILE = "VBench_full_info.json"

TEXT_COLUMNS = ("prompt", "prompts", "prompt_en", "text", "caption")
CATEGORY_COLUMNS = ("category", "dimension")
SETTING_COLUMNS = {
    *("seed", "seeds", "negative_prompt", "steps", "num_inference_steps", "guidance", "guidance_scale", "image"),
    *("height", "width", "num_frames", "strength", "method", "speedup"),
}
"""Columns that look as if each prompt had settings of its own, which a list of prompts cannot give."""


@dataclass(frozen=True)
class Prompt:
    """A text to sample; ``category`` (or VBench's dimensions, joined by commas) is empty where the list has none."""

    text: str
    category: str = ""


def load_prompts(source: str | Path, limit: int | None = None, *, model: str = "") -> list[Prompt]:
    """Read a list of prompts, in its order.

    Args:
        source: ``drawbench``, ``coco``, ``vbench``, ``tiny``, a file, or ``-`` for standard input. A ``.txt`` file, a
            file of any other suffix and standard input hold one prompt a line; ``.csv``, ``.tsv``, ``.json``,
            ``.jsonl`` and ``.parquet`` have a column "prompt" and optionally "category". COCO's caption files and
            VBench's prompt file are understood too.
        limit: how many to take from the beginning; None for all.
        model: name or folder of the small model that samples them: ``tiny`` is its own list, if it has one.

    Raises:
        InvalidOptionError: no such list or file, or nothing in it can be read as prompts.
        MissingPackageError: the list comes with a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise InvalidOptionError(f"limit={limit} leaves no prompt: give a number ≥ 1, or None for all")
    known = SOURCES.get(str(source).lower())
    if known:
        return known(model)[:limit]
    return (_read_stdin() if str(source) == STDIN else read_file(Path(source)))[:limit]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items, spaced evenly over the list, since lists are ordered by category."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def read_file(path: Path) -> list[Prompt]:
    """Read the prompts of a file; :func:`load_prompts` lists the formats."""
    if not path.is_file():
        raise InvalidOptionError(
            f"prompts {str(path)!r} is neither a known list nor a file{did_you_mean(path, SOURCES)}: give one of "
            f"{', '.join(SOURCES)}, or a file ({STDIN} for standard input)"
        )
    if path.suffix.lower() == ".parquet":
        return _not_empty(_from_records(_parquet(path), str(path)), str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
        prompts = _from_records(_PARSERS.get(path.suffix.lower(), _lines)(text), str(path))
    except InvalidOptionError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidOptionError(
            f"{path} can't be read as {path.suffix or 'text'} ({error}): save it as UTF-8 text with one prompt a line, "
            "or as .csv, .tsv, .json or .jsonl with a column named prompt"
        ) from error
    return _not_empty(prompts, str(path))


def _parquet(path: Path) -> list[Any]:
    """The rows of a Parquet file, of the columns that a prompt can have."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingPackageError(
            f"{path} needs the package pyarrow: pip install 'spectrum-diffusion[parquet]', or save it as .csv or .jsonl"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            known = {*TEXT_COLUMNS, *CATEGORY_COLUMNS}
            columns = [name for name in file.schema_arrow.names if name.strip().lower() in known]
            _warn_of_settings(file.schema_arrow.names, str(path))
            rows: list[Any] = file.read(columns=columns or None).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidOptionError(
            f"{path} can't be read as Parquet ({str(error).splitlines()[0]}): save it again, with a column prompt"
        ) from error
    return rows


def _read_stdin() -> list[Prompt]:
    try:
        return _not_empty(_from_records(_lines(sys.stdin.read().removeprefix("\ufeff")), "stdin"), "stdin")
    except UnicodeDecodeError as error:
        raise InvalidOptionError(f"stdin can't be read as text ({error}): pipe UTF-8, one prompt a line") from error


def _not_empty(prompts: list[Prompt], name: str) -> list[Prompt]:
    if not prompts:
        raise InvalidOptionError(f"{name} holds no prompt: write one prompt a line")
    return prompts


def _from_records(records: Iterable[Any], name: str) -> list[Prompt]:
    records = list(records)
    _warn_of_settings({key for record in records if isinstance(record, dict) for key in record}, name)
    return [prompt for record in records if (prompt := _prompt(record, name)).text]


def _warn_of_settings(columns: Iterable[Any], name: str) -> None:
    """Warn of columns that a reader of the file may take for settings."""
    ignored = sorted({str(column).strip().lower() for column in columns} & SETTING_COLUMNS)
    if ignored:
        warnings.warn(
            f"{name}: {', '.join(ignored)} ignored, because all prompts of a list share their settings and seeds: give "
            "them as options, and run a list for each setting",
            SpectrumWarning,
            stacklevel=2,
        )


def _prompt(record: Any, name: str) -> Prompt:
    if isinstance(record, str):
        return Prompt(record.strip())
    fields = {str(key).strip().lower(): value for key, value in record.items()} if isinstance(record, dict) else {}
    text = next((fields[column] for column in TEXT_COLUMNS if column in fields), None)
    if not isinstance(text, str):
        raise InvalidOptionError(
            f"{name} has an entry without a text named {' or '.join(TEXT_COLUMNS)}, got {record!r:.80}: name the "
            "column of the texts prompt"
        )
    category = next((fields[column] for column in CATEGORY_COLUMNS if fields.get(column)), "")
    return Prompt(text.strip(), ",".join(map(str, category)) if isinstance(category, list | tuple) else str(category))


def _lines(text: str) -> list[str]:
    """The lines of a text whose newlines Python has read: ``splitlines`` would cut a prompt at a line separator too."""
    return text.split("\n")


def _json_lines(text: str) -> list[Any]:
    records = []
    for number, line in enumerate(_lines(text), 1):
        try:
            records += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error
    return records


def _json(text: str) -> list[Any]:
    value = parse_json(text)
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        return _coco_captions(value["annotations"])
    return value if isinstance(value, list) else [value]


def _coco_captions(annotations: list[Any]) -> list[Any]:
    """The first caption of each image, in the order of the file."""
    captions: dict[str, Any] = {}
    for annotation in annotations:
        if not isinstance(annotation, dict):
            raise ValueError(f"its annotations must be objects, not {annotation!r:.40}")
        captions.setdefault(str(annotation.get("image_id")), annotation.get("caption", ""))
    return list(captions.values())


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
    """A list of prompts on the Hub, read with the package ``datasets``; this library ships no part of it.

    Attributes:
        repository: its id on the Hub, or a folder with a copy of it.
        split: the part to read.
        columns: the names of the column of texts and of the column of categories ("" for none).
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
        # COCO has several captions for each image: take the first.
        firsts = [(text if isinstance(text, str) else text[0], categories) for text, *categories in rows]
        return [Prompt(text.strip(), *categories) for text, categories in firsts]


def _vbench(model: str) -> list[Prompt]:
    for file in _vbench_files():
        if file.is_file():
            return read_file(file)
    raise MissingPackageError(
        "the prompts of VBench come in the package vbench: pip install --no-deps vbench "
        "(it is read, not imported), or give a file of prompts"
    )


def _vbench_files() -> Iterable[Path]:
    """Where the file may lie: in this environment, or in that of the program that computes VBench's metrics."""
    spec = importlib.util.find_spec("vbench")  # of a top-level package: finding it imports nothing
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / VBENCH_FILE
    yield from sorted(environment_of("vbench").glob(f"lib/python*/site-packages/vbench/{VBENCH_FILE}"))


def _tiny(model: str) -> list[Prompt]:
    """The concepts that a small model was trained on: its own list, or that of the whole training set."""
    own = named_models().get(model, Path(model)) / MODEL_FILE
    return read_file(own if own.is_file() else TINY_FILE)


DRAWBENCH = HubList("sayakpaul/drawbench", "train", ("Prompts", "Category"))
"""Saharia et al.: Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022; 200 prompts."""

COCO = HubList("phiyodr/coco2017", "validation", ("captions", ""))
"""Lin et al.: Microsoft COCO, 2014: the captions of the 5000 images of 2017's validation part."""

SOURCES: dict[str, Callable[[str], list[Prompt]]] = {
    "drawbench": DRAWBENCH,
    "coco": COCO,
    "vbench": _vbench,
    "tiny": _tiny,
}
"""Known lists by name; each is called with the name of the model that samples its prompts."""
