"""What the commands print: the result on stdout, a bar and failures on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from .encoding import knows_unicode
from .guard import FAILURE, errors_console


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr, only if that is a terminal."""
    console = errors_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def echo_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=not knows_unicode()))


FOLDED = 12
"""Characters to which a column may shrink that breaks words."""


def print_table(table: Table) -> None:
    """Print a table. Where it does not fit the terminal, print each row as its first cell with the others below."""
    console = Console(highlight=False)
    if sum(_least_width(column) + 3 for column in table.columns) + 1 <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title, style="bold")
    headers = [_plain(column.header).replace("\n", " ") for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = map(_plain, row)
        console.print(Text(first, style="bold"))
        facts = [f"{header}: {cell}" for header, cell in zip(headers[1:], others, strict=True) if cell]
        console.print(Padding(Text("; ".join(facts)), (0, 0, 0, 2)))


def _least_width(column: Column) -> int:
    """Characters below which a column of a table would lose text."""
    texts = [_plain(column.header), *map(_plain, column.cells)]
    parts = [part for text in texts for part in (text.splitlines() if column.no_wrap else text.split())]
    longest = max(map(cell_len, parts), default=0)
    return column.min_width or min(longest, FOLDED) if column.overflow == "fold" else longest


def _plain(cell: Any) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def print_markdown(text: str) -> None:
    """Render the tables of a page in a terminal; elsewhere print its source."""
    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def exit_for(failures: Mapping[str, str]) -> None:
    """Say which rows failed and why, and end with an error if any did."""
    for label, reason in failures.items():
        typer.echo(f"{label} failed: {reason}", err=True)
    if failures:
        raise typer.Exit(FAILURE)
