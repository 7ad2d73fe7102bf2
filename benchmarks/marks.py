"""Where in a Markdown file a command puts its table."""

from __future__ import annotations

from pathlib import Path


def replace_block(path: Path, table: str, block: str) -> None:
    """Put the table between the file's marks of that name."""
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")
