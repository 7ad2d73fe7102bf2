"""Write what the code says about each method into docs/methods/: `python docs/method_pages.py`.

The text between a page's marks comes from docstrings and classes. Text outside the marks is written by hand and stays.
A new method gets a page of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from pathlib import Path

from spectrum_diffusion.cli.catalog import descriptions
from spectrum_diffusion.methods import METHODS, AnyMethod, Method
from spectrum_diffusion.methods.base import Scheduled
from spectrum_diffusion.sites import site_class

FOLDER = Path(__file__).with_name("methods")
STEPS = 50
COMMON = tuple(field.name for field in fields(Method))
"""Options that all methods with a schedule share; the index lists them once."""
OURS = tuple(name for name in METHODS if ":" not in name)


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Every page that holds generated text, as the code has it now."""
    blocks = {"index": index(), "other-packages": other_packages(), **{name: section(name) for name in OURS}}
    return {FOLDER / f"{name}.md": updated(FOLDER / f"{name}.md", block) for name, block in blocks.items()}


def updated(path: Path, block: str) -> str:
    """The page with the text between its marks replaced; a page that does not exist yet consists of that text."""
    begin, end = "<!-- generated:begin -->", "<!-- generated:end -->"
    page = path.read_text(encoding="utf-8") if path.exists() else f"{begin}{end}\n"
    head, tail = page.split(begin)[0], page.split(end)[1]
    return f"{head}{begin}\n{block}\n{end}{tail}"


def index() -> str:
    """A row for each method of this package."""
    rows = [f"| [`{name}`]({name}.md) | {evaluations(name)} | {first_line(METHODS[name])} |" for name in OURS]
    return "\n".join([f"| method | evaluated of {STEPS} | what it does |", "|---|---|---|", *rows])


def evaluations(name: str) -> str:
    """Number of evaluated steps at the method's defaults, where it is known before the run."""
    method = METHODS[name]()
    return (
        str(len(method.schedule(method.sampler_steps(STEPS))))
        if isinstance(method, Scheduled)
        else "decided at run time"
    )


def other_packages() -> str:
    """The methods of other packages, by name."""
    rows = [f"| `{name}` | {first_line(METHODS[name])} |" for name in METHODS if name not in OURS]
    return "\n".join(["| name | what it does |", "|---|---|", *rows])


def first_line(cls: type[AnyMethod]) -> str:
    return (cls.__doc__ or "").partition("\n")[0].replace("``", "`")


def section(name: str) -> str:
    """What the code says about one method."""
    cls = METHODS[name]
    idea, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")
    source = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "")
    parts = [f"# `{name}`", idea.strip().replace("``", "`"), quoted(source), *options(cls), facts(cls)]
    return "\n\n".join(part for part in parts if part)


def quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.replace("``", "`").splitlines())


def options(cls: type[AnyMethod]) -> list[str]:
    """A table of the method's own options."""
    meanings = descriptions(cls)
    own = [field for field in fields(cls) if field.name not in COMMON]
    rows = [f"| `{f.name}` | {shown(f.default)} | {meanings.get(f.name, '')} |" for f in own]
    return ["\n".join(["| option | default | meaning |", "|---|---|---|", *rows])] if rows else []


def facts(cls: type[AnyMethod]) -> str:
    """Schedule, sites, memory and limits of the method at its defaults."""
    method = cls()
    kept = ["- Forecasts nothing and keeps nothing."] if method.sets_steps else forecast_facts(method)
    return "\n".join([steps_fact(method), *kept, f"- Works on: {cls.limits}."])


def steps_fact(method: AnyMethod) -> str:
    """Which steps the method evaluates, or takes at all."""
    if not isinstance(method, Scheduled):
        return "- Decides at run time which steps to evaluate."
    spacing = (
        f"interval {method.interval}, warmup {method.warmup}, slope {method.slope:g}"
        if isinstance(method, Method)
        else ", ".join(map(str, method.schedule(STEPS)))
    )
    if method.overrides("paced"):
        spacing += " where the noise is unknown; else they follow the scheduler's noise levels"
    count = len(method.schedule(method.sampler_steps(STEPS)))
    action = f"Takes {count} steps instead of {STEPS}" if method.sets_steps else f"Evaluates {count} of {STEPS} steps"
    return f"- {action} ({spacing})."


def forecast_facts(method: AnyMethod) -> list[str]:
    """Where the method reads its features, and what it keeps of them."""
    sites = ", ".join(f"`{site}`" for site in sorted(method.sites, key=lambda site: site != method.site))
    kept = {None: "of every evaluated step", 1: "of the last evaluated step"}
    span = kept.get(method.window, f"of the last {method.window} evaluated steps")
    return [
        f"- Site: {sites}{' (the first is the default)' if len(method.sites) > 1 else ''}.",
        f"- Keeps {site_class(method.site).keeps}, {span}.",
    ]


def shown(default: object) -> str:
    return (
        "–" if default is None or default is MISSING else f"{default:g}" if isinstance(default, float) else f"{default}"
    )


if __name__ == "__main__":
    main()
