"""The command ``spectrum models``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import catalog
from ..app import app
from ..options import AsJson
from ..printing import echo_json


@app.command("models")
def list_models(as_json: AsJson = False) -> None:
    """List the small trained models, and the denoiser classes of the installed diffusers."""
    shipped, found = catalog.shipped_models(), catalog.denoisers()
    if as_json:
        echo_json({"shipped": shipped, "denoisers": found})
        return
    table = Table(
        "denoiser",
        "site",
        "blocks → tail, or why there is none",
        title="Denoisers of the installed diffusers",
    )
    for row in found:
        way = f"{', '.join(row['blocks'])} → {', '.join(row['tail'])}" if row["blocks"] else row["reason"]
        table.add_row(row["class"], row["site"], escape(way))
    console = Console()
    console.print(f"Small trained models here, for --model: [bold]{', '.join(shipped)}[/bold]", highlight=False)
    console.print(table)
    console.print('Any other denoiser: site="output", or register_denoiser.', highlight=False)
