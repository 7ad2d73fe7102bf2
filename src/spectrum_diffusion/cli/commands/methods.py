"""The command ``spectrum methods``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import catalog
from ..app import app
from ..options import AsJson
from ..printing import echo_json


@app.command("methods")
def list_methods(as_json: AsJson = False) -> None:
    """List the methods with their options."""
    found = catalog.methods()
    if as_json:
        echo_json({"methods": found})
        return
    console = Console(highlight=False)
    for method in found:
        options = ", ".join(
            f"{name}={'–' if value is None else value}" for name, value in method["options"].items() if name != "site"
        )
        console.print(f"[bold]{escape(method['name'])}[/bold]  {escape(method['idea'].replace('``', ''))}")
        grid = Table.grid(padding=(0, 2))
        grid.add_row("   can do", escape(method["limits"]))
        grid.add_row("   sites", ", ".join(method["sites"]))
        if method["package"]:
            grid.add_row("   package", escape(method["package"]))
        grid.add_row("   options", escape(options))
        console.print(grid)
