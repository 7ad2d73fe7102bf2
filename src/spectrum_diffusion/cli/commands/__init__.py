"""The commands, one file each: a module of this folder registers its command with ``@app.command()``."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f".{_module.name}", __package__)
