"""The command ``spectrum``. Heavy libraries are imported inside the commands, so that ``--help`` is quick."""

from . import commands
from .app import app, main

__all__ = ["app", "commands", "main"]
