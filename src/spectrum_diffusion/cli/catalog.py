"""What there is: methods with their options, denoisers with their sites, models that ship."""

from __future__ import annotations

from typing import Any


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


def _package(method: Any) -> str | None:
    """The package of another's cache with its version; None for the methods of this one."""
    if not method.package:
        return None
    return f"{method.package} {method.version()}" if method.available() else f"{method.package}: not installed"


def denoisers() -> list[dict[str, Any]]:
    """Every denoiser class of the installed diffusers: its site, and blocks and tail or why it has none."""
    from ..loading import _quiet
    from ..sites.denoisers import DENOISERS, find_denoiser_classes

    found = []
    with _quiet():  # importing all of diffusers makes transformers speak of every optional package
        names = find_denoiser_classes()
    for name in names:
        row = DENOISERS.get(name)
        last_block = row is not None and bool(row.blocks)
        found.append(
            {
                "class": name,
                "site": "last_block" if last_block else "output",
                "blocks": list(row.blocks) if row else [],
                "tail": list(row.tail) if row else [],
                "reason": row.reason if row else "no row in the table: add one with register_denoiser",
            }
        )
    return found


def shipped_models() -> list[str]:
    """Names of the small trained models at hand: the one in the package, and those of the checkout."""
    from ..loading import named_models

    return sorted(named_models())
