"""The command ``spectrum``; its subcommands are the modules of ``commands``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from .guard import GuardedGroup, MistakeError, set_up_logging

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
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Print more on stderr; -vv prints everything.")
    ] = 0,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="Module that registers methods; may be repeated."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_up_logging(verbose)
    for module in imports or ():
        _import(module)


def _import(module: str) -> None:
    """Import a module of the current folder or of the environment, as `python -m` finds it."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        import_module(module)
    except Exception as error:  # the code of others fails in any way
        way_out = f"give a module of {Path.cwd()} or of the environment, without .py"
        raise MistakeError(f"--import {module!r} failed ({type(error).__name__}: {error}): {way_out}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
