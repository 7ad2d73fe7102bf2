"""The command ``spectrum models``."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import catalog
from ..app import app
from ..options import AsJson
from ..printing import echo_json, print_table


@app.command("models")
def list_models(as_json: AsJson = False) -> None:
    """List the small trained models, and the denoiser classes of the installed diffusers."""
    shipped, denoisers = catalog.shipped_models(), catalog.denoisers()
    if as_json:
        echo_json({"shipped": shipped, "denoisers": denoisers})
        return
    table = Table(title="Denoisers of the installed diffusers")
    table.add_column("denoiser", overflow="fold", min_width=24)
    table.add_column("site")
    table.add_column("blocks → tail, or why there are none", overflow="fold", min_width=24)
    for row in denoisers:
        way = f"{', '.join(row['blocks'])} → {', '.join(row['tail'])}" if row["blocks"] else row["reason"]
        table.add_row(row["class"], row["site"], escape(way))
    console = Console()
    console.print(f"Small trained models here, for --model: [bold]{', '.join(shipped)}[/bold]", highlight=False)
    print_table(table)
    console.print('Any other denoiser: site="output", or register_denoiser.', highlight=False)
