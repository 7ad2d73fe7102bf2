"""Replace the generated blocks of Markdown pages."""

from __future__ import annotations

import sys
from pathlib import Path


def command(benchmark: str) -> str:
    """The command that is running, as it was given."""
    return " ".join(["python -m", f"benchmarks.{benchmark}", *sys.argv[1:]])


def replace_block(path: Path, table: str, block: str) -> None:
    """Replace the text between the marks named ``block``."""
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def block_of(path: Path, block: str) -> str:
    """The text between the marks named ``block``."""
    return (
        path.read_text(encoding="utf-8").split(f"<!-- {block}:begin -->")[1].split(f"<!-- {block}:end -->")[0].strip()
    )
