"""Split what `spectrum reproduce TABLE… -o FOLDER` wrote into the pages of docs/results, with its figures.

python -m benchmarks.results FOLDER

`index.md` gets the overview, `claims.md` the paper's claims, and a page for each model its tables and figures. The
README shows some rows of the overview. After a run of some tables, the sections of the others stay as they are, and so
do the claims, which are about all tables. After a run on some models (`--only`), the overview gets their columns, and
nothing else changes but their own pages.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image

from .marks import block_of, replace_block

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "results"
FIGURES = ROOT / "docs" / "images" / "results"
SHOWN = (
    "fewer steps",
    "FORA",
    "TaylorSeer order 1",
    "TeaCache",
    "Spectrum, the paper's",
    "spectrum",
)
"""Rows of the overview that the README has room for."""
TABLE = r"^\| about .*(?:\n\|.*)*"
"""A table of the overview."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = (folder / "results.md").read_text(encoding="utf-8").split("\n", 2)[2]  # the index has its own title
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in re.findall(r"\]\(([\w-]+\.svg)\)", text):
        shutil.copyfile(folder / name, FIGURES / name)
    for name in re.findall(r"\]\(([\w-]+\.png)\)", text):
        Image.open(folder / name).convert("RGB").quantize(256).save(FIGURES / name, optimize=True)
    blocks = pages(text)
    overview = block_of(PAGES / "index.md", "run")
    if not models_of(overview) <= models_of(blocks["index"]):
        blocks["index"] = with_columns(overview, blocks["index"])
        blocks.pop("claims", None)
    for name, block in blocks.items():
        path = PAGES / f"{name}.md"
        replace_block(path, block if name in ("index", "claims") else merged(block_of(path, "run"), block), "run")
    replace_block(ROOT / "README.md", excerpt(blocks["index"]), "results")


def pages(text: str) -> dict[str, str]:
    """Name of a page → its text, from the whole of `results.md` without its title."""
    before, tables = re.split(r"^## Tables and figures\n", text, flags=re.MULTILINE)
    overview, _, claims = before.partition("## The paper's claims\n")
    texts = {"index": overview.strip()}
    if re.search(r"^### table\d", tables, re.MULTILINE):
        texts["claims"] = claims.strip()
    for section in re.split(r"^(?=### )", tables, flags=re.MULTILINE)[1:]:
        model = re.findall(r"^Ours on ([\w-]+),", section, re.MULTILINE)[0]
        linked = re.sub(r"\]\(([\w-]+\.(?:png|svg))\)", r"](../images/results/\1)", section)
        texts[model] = f"{texts.get(model, '')}{linked.replace('### ', '## ', 1)}"
    return {name: block.strip() for name, block in texts.items()}


def merged(old: str, new: str) -> str:
    """The sections of a page, where new ones replace those of the same table."""
    sections = {
        section.partition(":")[0]: section.strip()
        for block in (old, new)
        for section in re.split(r"^(?=## )", block, flags=re.MULTILINE)
        if section.strip()
    }
    return "\n\n".join(sections.values())


def models_of(overview: str) -> set[str]:
    """The models of an overview's tables."""
    return {name for table in tables(overview) for name in table[0][1:]}


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def with_columns(old: str, new: str) -> str:
    """The old overview, whose tables get the columns of the new one's tables."""
    added = {table[0][0]: table for table in tables(new)}
    return re.sub(TABLE, lambda match: _joined(_rows(match[0]), added), old, flags=re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table about a number of evaluations, row by row."""
    return [_rows(table) for table in re.findall(TABLE, text, re.MULTILINE)]


def _rows(table: str) -> list[list[str]]:
    return [cells_of(row) for row in table.splitlines()]


def _joined(old: list[list[str]], added: dict[str, list[list[str]]]) -> str:
    new = added.get(old[0][0], [])
    values = {row[0]: dict(zip(new[0][1:], row[1:], strict=True)) for row in new}
    names = list(dict.fromkeys([*old[0][1:], *(new[0][1:] if new else [])]))
    lines = []
    for row in old:
        known = dict(zip(old[0][1:], row[1:], strict=True)) | values.get(row[0], {})
        lines.append(f"| {row[0]} | {' | '.join(known.get(name, '–') for name in names)} |")
    return "\n".join(lines)


def excerpt(text: str) -> str:
    """The rows of the overview's first table that are shown in the README, line by line as they are there."""
    table = re.search(r"^\| about 14 .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert table, "the overview has no table of about 14 evaluations"
    head, rule, *rows = table[0].splitlines()
    return "\n".join([head, rule, *(row for row in rows if row.split(" | ")[0][2:] in SHOWN)])


if __name__ == "__main__":
    main()
