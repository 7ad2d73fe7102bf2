"""Write what the code says of each method into docs/methods.md: `python docs/method_pages.py`.

Idea, paper and equation, options with defaults, sites, evaluations and memory come from the docstrings and classes
themselves; what stands outside the marks is written by hand and stays.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from spectrum_diffusion.methods import METHODS, AnyMethod, Method

PAGE = Path(__file__).with_name("methods.md")
STEPS = 50
COMMON = tuple(field.name for field in fields(Method))
"""Options that all methods on a schedule share; the page lists them once."""

KEPT = {
    "last_block": "the tokens after the last block",
    "output": "the denoiser's output",
    "module": "the outputs of every attention and feed-forward module",
    "residual": "what the stack of blocks adds to the image tokens",
    "first_block": "what the blocks after the first add to the image tokens",
    "output_residual": "what the denoiser adds to its sample",
    "deep": "the output of the deep part of the U-Net",
    "tokens": "the outputs of every attention and feed-forward module, and a score for each token",
}


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(page: str) -> str:
    """The page with the block of every method as the code has it; a method without marks is an error."""
    for name in [*(name for name in METHODS if ":" not in name), "rivals"]:
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            sys.exit(f"{PAGE.name} has no place for {name}: write {begin} and {end} where its page belongs")
        head, rest = page.split(begin)
        text = rivals() if name == "rivals" else section(name)
        page = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return page


def rivals() -> str:
    """The other packages' methods by name."""
    rows = [f"| `{name}` | {(METHODS[name].__doc__ or '').partition(chr(10))[0]} |" for name in METHODS if ":" in name]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def section(name: str) -> str:
    """What the code says of one method."""
    cls = METHODS[name]
    idea, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")
    source = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "")
    parts = [f"### `{name}`", idea.strip().replace("``", "`"), quoted(source), *options(cls), facts(cls)]
    return "\n\n".join(part for part in parts if part)


def quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.replace("``", "`").splitlines())


def options(cls: type[AnyMethod]) -> list[str]:
    """A table of what is special to the method, and the common options' defaults where they are its own."""
    said = descriptions(cls)
    own = [field for field in fields(cls) if field.name not in COMMON]
    rows = [f"| `{f.name}` | {shown(f.default)} | {said.get(f.name, '')} |" for f in own]
    return ["\n".join(["| option | default | meaning |", "|---|---|---|", *rows])] if rows else []


def descriptions(cls: type[AnyMethod]) -> dict[str, str]:
    """Option → meaning, from the `Attributes:` of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:")
        for match in re.finditer(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", attributes, re.MULTILINE):
            found[match[1]] = " ".join(match[2].split())
    return found


def facts(cls: type[AnyMethod]) -> str:
    """Schedule, sites, memory and limits of the method at its defaults."""
    method = cls()
    lines = []
    if isinstance(method, Method):
        steps = method.sampler_steps(STEPS)
        count = len(method.schedule(steps))
        spacing = f"interval {method.interval}, warmup {method.warmup}, slope {method.slope:g}"
        lines.append(f"- Evaluations of {STEPS} steps: {count} ({spacing}).")
    else:
        lines.append(f"- Evaluations of {STEPS} steps: as it decides while running.")
    sites = ", ".join(f"`{site}`" for site in sorted(cls.sites, key=lambda site: site != method.site))
    kept = {None: "of every evaluated step", 1: "of the last evaluated step"}
    lines.append(f"- Site: {sites}{' (the first is the default)' if len(cls.sites) > 1 else ''}.")
    if method.site in KEPT:
        span = kept.get(method.window, f"of the last {method.window} evaluated steps")
        lines.append(f"- Keeps {KEPT[method.site]}, {span}.")
    lines.append(f"- Can do: {cls.limits}.")
    return "\n".join(lines)


def shown(default: object) -> str:
    return (
        "–" if default is None or default is MISSING else f"{default:g}" if isinstance(default, float) else f"{default}"
    )


if __name__ == "__main__":
    main()
