"""Imports go one way, as docs/design.md draws it; also those inside functions and for annotations only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import spectrum_diffusion

PACKAGE = Path(__file__).parents[1] / "src" / "spectrum_diffusion"

LAYERS = (
    ("errors", "_version", "_interrupts", "atomic", "cluster", "untrusted"),
    ("core",),
    ("sites",),
    ("methods",),
    ("interop",),
    (
        *("handle", "pipeline", "checks", "recipe", "conditions", "plan", "solvers", "noise", "tune"),
        *("discovery", "memory", "stepping", "scheduler_clock", "scheduler_steps", "loading", "keys"),
    ),
    ("serve",),
    ("bench",),
    ("demo",),
    ("cli", "__main__"),
)
"""From the bottom to the top: a module imports its own layer and those before it."""
PUBLIC = ("schedule", "forecast", "metrics", "prompts", "cost", "evaluate")
"""Public import paths of modules that lie deeper. Nothing in the package uses them."""
ANNOTATIONS = {("core/run.py", "methods"), ("core/sampler.py", "methods")}
"""For annotations only: a run calls the base class of methods, and knows none of them."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in RANK
]


def imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Line, target within spectrum_diffusion, and whether it is for annotations only, of each import of the package."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top, *path = name.split(".")
            if top == PACKAGE.name:
                yield node.lineno, tuple(path), id(node) in typing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    package = (PACKAGE.name, *relative.parts[:-1])
    for line, target, is_annotation in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        if is_annotation and (relative.as_posix(), target[0]) in ANNOTATIONS:
            continue
        public = target[0] not in RANK and target[0] in spectrum_diffusion.__all__
        place = "handle" if public else target[0]
        assert place in RANK, f"{relative}:{line} imports {'.'.join(target)}: import it from where it lies"
        assert RANK[place] <= RANK[own], f"{relative}:{line}: {own} must not import {target[0]}"


def test_every_module_has_a_layer() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert names - {"__init__", *PUBLIC} <= RANK.keys(), "place the new module in LAYERS and in docs/design.md"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..cli import app", ("cli", "app")),
        ("from .. import cli", ("cli",)),
        ("def f():\n    from ..cli.app import main", ("cli", "app", "main")),
        ("import spectrum_diffusion.cli", ("cli",)),
        ("from spectrum_diffusion import cli", ("cli",)),
        ("if TYPE_CHECKING:\n    from ..cli import app", ("cli", "app")),
    ],
)
def test_the_test_sees_every_way_to_import(source: str, expected: tuple[str, ...]) -> None:
    assert [target for _, target, _ in imports(ast.parse(source), (PACKAGE.name, "core"))] == [expected]
