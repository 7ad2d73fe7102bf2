"""The command ``spectrum``; its subcommands are the modules of ``commands``."""

from __future__ import annotations

from typing import Annotated

import typer

from .guard import GuardedGroup, set_up_logging

app = typer.Typer(
    cls=GuardedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sample from diffusion models several times faster, by forecasting most of the denoiser's features.",
)


def main() -> None:
    """Entry point of the command ``spectrum``."""
    app(prog_name="spectrum")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more on stderr; -vv all.")] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_up_logging(verbose)
