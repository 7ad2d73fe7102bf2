"""How a pipeline steps its schedulers, as far as its source tells."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

LOOPS = (ast.For, ast.While)


@dataclass(frozen=True)
class Step:
    """A place where a pipeline's source calls ``step`` of a scheduler.

    Attributes:
        scheduler: whose step it is, as the source writes it.
        is_variable: whether that is a variable or an item of one, and no attribute of the pipeline.
        loops: the loops around it, innermost first.
        always: whether the innermost loop reaches it in each round.
    """

    scheduler: str
    is_variable: bool
    loops: tuple[ast.For | ast.While, ...]
    always: bool

    @property
    def repeats(self) -> bool:
        """Whether a loop over timesteps holds the loop around the step."""
        innermost, *outer = [_iterated(loop) for loop in self.loops] or [""]
        return "timestep" not in innermost and any("timestep" in loop for loop in outer)


def why_steps_differ(cls: type) -> str:
    """Why a pipeline's class does not step one scheduler once for each evaluation, or "" as far as is known."""
    steps = [step for function in _functions(cls) for step in _steps(function, (), True)]
    if steps and all(step.is_variable for step in steps):
        return "it steps copies of its scheduler"
    if any(step.repeats for step in steps):
        return "its scheduler takes several steps at one timestep"
    loops: dict[ast.AST, set[str]] = {}
    for step in steps:
        if step.loops and step.always:
            loops.setdefault(step.loops[0], set()).add(step.scheduler)
    several = [schedulers for schedulers in loops.values() if len(schedulers) > 1]
    names = sorted(name.removeprefix("self.") for name in several[0]) if several else []
    return f"{' and '.join(names)} take steps in one sampling loop" if names else ""


def _functions(cls: type) -> list[ast.FunctionDef]:
    """The functions that a class's call reaches through ``self`` and ``super()``, but those whose source is missing."""
    reached: dict[tuple[type, str], ast.FunctionDef] = {}
    waiting = [("__call__", cls.__mro__)]
    while waiting:
        name, bases = waiting.pop()
        owner = next((base for base in bases if name in vars(base)), None)
        if owner is None or (owner, name) in reached or (function := _parsed(vars(owner)[name])) is None:
            continue
        reached[owner, name] = function
        further = cls.__mro__[cls.__mro__.index(owner) + 1 :]
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and (origin := ast.unparse(node.value)) in ("self", "super()"):
                waiting.append((node.attr, cls.__mro__ if origin == "self" else further))
    return list(reached.values())


def _parsed(function: object) -> ast.FunctionDef | None:
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def _steps(node: ast.AST, loops: tuple[ast.For | ast.While, ...], always: bool) -> Iterator[Step]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step":
        scheduler = node.func.value
        if "scheduler" in (name := ast.unparse(scheduler)):
            yield Step(name, not isinstance(scheduler, ast.Attribute), loops, always)
    for inner in ast.iter_child_nodes(node):
        if isinstance(node, LOOPS) and inner in node.body:
            yield from _steps(inner, (node, *loops), True)
        else:
            yield from _steps(inner, loops, always and not isinstance(node, (ast.If, ast.IfExp)))


def _iterated(loop: ast.For | ast.While) -> str:
    return ast.unparse(loop.iter if isinstance(loop, ast.For) else loop.test)
