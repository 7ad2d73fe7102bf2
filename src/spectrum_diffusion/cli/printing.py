"""What the commands print: the result on stdout, a bar and failures on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
