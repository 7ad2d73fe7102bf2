"""What a user sees when something goes wrong: one message on stderr and an exit code, never a traceback.

Exit codes: 0 fine, 1 a failure, 2 a mistake in what was asked for, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from .._interrupts import exit_interrupted, was_interrupted
from ..atomic import StoreError
from ..core.words import first_line
from ..errors import SpectrumError, SpectrumWarning
from .encoding import never_fail_to_print

log = logging.getLogger("spectrum_diffusion")

FAILURE, MISTAKE = 1, 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class MistakeError(SpectrumError):
    """A mistake of the user; the message says what was given, why it is wrong, and what to do."""


class FailureError(Exception):
    """A valid request that failed."""


class GuardedGroup(TyperGroup):
    """A group of commands whose exceptions end as messages, on terminals of any encoding."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        never_fail_to_print()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # they are RuntimeErrors
            raise
        except StoreError as error:
            raise _exit(error, FAILURE) from None
        except SpectrumError as error:
            raise _exit(error, MISTAKE) from None
        except (FailureError, OSError, ImportError, ValueError, RuntimeError) as error:
            raise _exit(error, FAILURE) from None


@contextmanager
def interruptible(kept: str = "") -> Iterator[None]:
    """End the command with one message and exit code 130 if Ctrl-C is pressed within the block.

    Args:
        kept: what of the work is kept then, and what the same command does if it is given again.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or was_interrupted():
            exit_interrupted(kept)
        raise


@contextmanager
def sampling_failures(pipe: Any, has_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Report an exception of a pipeline.

    Args:
        pipe: the pipeline that runs within the block.
        has_begun: whether the first step is done. Before it, a pipeline checks its arguments.

    Raises:
        MistakeError: the pipeline refuses its arguments.
        FailureError: it failed while sampling.
    """
    import torch

    try:
        yield
    except SpectrumError:
        raise
    except torch.OutOfMemoryError:
        raise FailureError(
            "the accelerator's memory is full: try --offload model, a smaller --size or --dtype"
        ) from None
    except (ValueError, TypeError) as error:
        kind = FailureError if has_begun() else MistakeError
        raise kind(f"{type(pipe).__name__}: {first_line(error)}") from error


def errors_console() -> Console:
    """Where all goes that is not the result. Made anew, as stderr may be replaced between two commands."""
    return Console(stderr=True)


def set_up_logging(verbose: int) -> None:
    """Log to stderr: warnings, with -v what is done, with -vv everything."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = RichHandler(console=errors_console(), show_path=False, show_time=False)
    # Python forgets what it has shown whenever a filter changes, so a warning would come again for each image.
    warnings.showwarning = functools.partial(_show_warning, set())  # type: ignore[assignment]
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(level)


def _show_warning(shown: set[str], message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, SpectrumWarning):  # what the library has to say, without the place in its code
        if str(message) not in shown:
            typer.echo(f"Warning: {message}", err=True)
        shown.add(str(message))
    else:
        log.debug("%s: %s", category.__name__, message)


def _exit(error: BaseException, code: int) -> typer.Exit:
    log.debug("traceback of the error", exc_info=error)
    typer.echo(f"Error: {_message(error)}", err=True)
    return typer.Exit(code)


def _message(error: BaseException) -> str:
    if isinstance(error, SpectrumError | FailureError):
        return str(error)
    if not isinstance(error, OSError) or error.strerror is None:
        return first_line(error)
    place = error.filename or "the output"
    if error.errno in DISK_FULL:
        return f"{place} cannot be written, since the disk is full: free some space and run the same command again"
    return f"{place}: {error.strerror}"
