"""The command ``spectrum doctor``."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import doctor
from ..app import app
from ..guard import FAILURE
from ..options import AsJson
from ..printing import echo_json, print_table


@app.command("doctor")
def examine(as_json: AsJson = False) -> None:
    """Report installed and missing packages, what needs them, and the devices of this machine."""
    report = doctor.examine()
    if as_json:
        echo_json(report)
    else:
        _print_report(report)
    if not report["healthy"]:
        raise typer.Exit(FAILURE)


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    console.print(f"spectrum-diffusion {report['version']}, Python {report['python']}, {report['platform']}")
    table = Table("package", "version", "state", "for", "how to get it")
    for package in report["packages"]:
        state = package["state"] + (f": {package['problem']}" if package["problem"] else "")
        install = "" if package["state"] == "ok" else package["install"]
        cells = (package["name"], package["version"] or "–", state, package["purpose"], install)
        table.add_row(*(escape(cell) for cell in cells))
    print_table(table)
    for device in report["devices"]:
        memory = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
        console.print(f"{device['device']}: {device['name']}{memory}")
    console.print(f"bfloat16 on the CPU: {report['cpu_bfloat16'] or 'unknown'}")
