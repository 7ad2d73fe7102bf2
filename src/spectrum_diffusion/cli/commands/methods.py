"""The command ``spectrum methods``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from .. import catalog
from ..app import app
from ..completion import complete_method
from ..options import AsJson
from ..printing import echo_json, print_table


@app.command("methods")
def list_methods(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, for a page about it. (default: a list of all)", autocompletion=complete_method),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods with their options, or describe one of them."""
    if name is not None:
        page = catalog.method_page(name)
        echo_json(page) if as_json else _print_page(page)
        return
    methods = catalog.methods()
    if as_json:
        echo_json({"methods": methods})
        return
    console = Console(highlight=False)
    for method in methods:
        options = ", ".join(
            f"{name}={'–' if value is None else value}" for name, value in method["options"].items() if name != "site"
        )
        console.print(f"[bold]{escape(method['name'])}[/bold]  {escape(method['idea'].replace('``', ''))}")
        grid = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
        grid.add_row("   works on", escape(method["limits"]))
        grid.add_row("   sites", ", ".join(method["sites"]))
        if method["package"]:
            grid.add_row("   package", escape(method["package"]))
        grid.add_row("   options", escape(options))
        console.print(grid)


def _print_page(page: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{escape(page['name'])}[/bold]")
    for paragraph in f"{page['idea']}\n\n{page['source']}".split("\n\n"):
        console.print(escape(" ".join(paragraph.replace("``", "").split())), end="\n\n")
    table = Table(title="Options")
    for title, least in (("option", None), ("default", 9), ("range", 9), ("meaning", 24)):
        table.add_column(title, overflow="fold" if least else "ellipsis", min_width=least)
    for option in page["options"]:
        default = "–" if option["default"] is None else str(option["default"])
        table.add_row(*map(escape, (option["name"], default, option["range"], option["meaning"].replace("``", ""))))
    print_table(table)
    console.print(f"Works on: {escape(page['limits'])}. Sites: {', '.join(page['sites'])}.")
    if page["package"]:
        console.print(f"Package: {escape(page['package'])}.")
    console.print(f"Example: {escape(page['example'])}", soft_wrap=True)
