"""What there is: methods with their options, denoisers with their sites, models that ship."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from .request import check_choice


def methods() -> list[dict[str, Any]]:
    """Name, idea, limits, sites and options with defaults of every method."""
    from ..methods import METHODS

    return [
        {
            "name": name,
            "idea": (cls.__doc__ or "").strip().partition("\n")[0],
            "limits": cls.limits,
            "sites": list(cls.sites),
            "options": cls.defaults(),
            "package": _package(cls),
        }
        for name, cls in METHODS.usable().items()
    ]


def method_page(name: str) -> dict[str, Any]:
    """All about one method: what it is, its source, and its options with defaults, ranges and meanings.

    Raises:
        MistakeError: there is no such method.
    """
    from ..methods import METHODS

    check_choice("method", name, METHODS)
    cls = METHODS[name]
    meanings, ranges = descriptions(cls), option_ranges(cls)
    example = next((option for option in ("speedup", "threshold", "interval") if option in cls.defaults()), None)
    values = {"speedup": "speedup=3", "threshold": "threshold=0.1", "interval": "interval=3"}
    given = f" --option {values[example]}" if example else ""
    return {
        "name": name,
        "idea": inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[0].strip(),
        "source": inspect.cleandoc(getattr(inspect.getmodule(cls), "__doc__", None) or ""),
        "limits": cls.limits,
        "sites": list(cls.sites),
        "package": _package(cls),
        "options": [
            {"name": option, "default": default, "range": ranges.get(option, ""), "meaning": meanings.get(option, "")}
            for option, default in cls.defaults().items()
        ],
        "example": f'spectrum generate "red apple" --method {name}{given} -o apple.png',
    }


def descriptions(cls: type) -> dict[str, str]:
    """Option → meaning, from the `Attributes:` of the class and its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:")
        for match in re.finditer(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", attributes, re.MULTILINE):
            meanings[match[1]] = " ".join(match[2].split())
    return meanings


def option_ranges(cls: type) -> dict[str, str]:
    """Option → what it may be, as the class checks it; options that are unset by default are not checked."""
    ranges: dict[str, str] = {}

    class Probe(cls):  # type: ignore[misc]
        def check_integer(self, name: str, *, least: int, most: int | None = None) -> None:
            ranges[name] = f"integer ≥ {least}" if most is None else f"integer, {least} … {most}"

        def check_number(self, name: str, *, least: float, most: float | None = None) -> None:
            ranges[name] = f"number ≥ {least:g}" if most is None else f"number, {least:g} … {most:g}"

        def check_choice(self, name: str, choices: Sequence[str]) -> None:
            ranges[name] = ", ".join(choices)

    Probe()
    return ranges


def _package(method: Any) -> str | None:
    """The package of another's cache with its version; None for the methods of this one."""
    if not method.package:
        return None
    return f"{method.package} {method.version()}" if method.available() else f"{method.package}: not installed"


def denoisers() -> list[dict[str, Any]]:
    """Every denoiser class of the installed diffusers: its site, and blocks and tail or why it has none."""
    from ..loading import quiet
    from ..sites.denoisers import DENOISERS, find_denoiser_classes

    classes = []
    with quiet():  # importing all of diffusers makes transformers speak of every optional package
        names = find_denoiser_classes()
    for name in names:
        row = DENOISERS.get(name)
        last_block = row is not None and bool(row.blocks)
        classes.append(
            {
                "class": name,
                "site": "last_block" if last_block else "output",
                "blocks": list(row.blocks) if row else [],
                "tail": list(row.tail) if row else [],
                "reason": row.reason if row else "no row in the table: add one with register_denoiser",
            }
        )
    return classes


def shipped_models() -> list[str]:
    """Names of the small trained models at hand: the one in the package, and those of the checkout."""
    from ..loading import named_models

    return sorted(named_models())
