"""Write the lines of code by part into docs/design.md, before the split into library and bench and now: `make lines`.

A line counts if it holds code: blank lines, comments and docstrings do not. Needs the history of the repository.
"""

from __future__ import annotations

import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
PACKAGE = "src/spectrum_diffusion/"
BEFORE = "c2c961f"
"""The last commit in which all modules lay side by side."""

BEGIN, END = "<!-- lines:begin -->", "<!-- lines:end -->"
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

# Files of the old layout by the part that holds them now, where the name does not tell.
MOVED = {
    "core": ("flops", "forecast", "history", "run", "schedule", "summary", "words"),
    "sites": ("denoisers", "hooks", "sites", "tokens"),
    "interop": ("methods/rivals",),
    "bench": (
        *("atomic", "cost", "evaluate", "metrics", "mp4", "prompts", "reproduce"),
        *("cli/comparison", "cli/grid"),
    ),
}
FOLDERS = ("core", "sites", "methods", "interop", "serve", "bench", "demo", "cli")
NEW = {
    "bench/speed": "speed and memory",
    "bench/batch": "batches",
    "bench/evaluate/crew": "evaluations on a cluster",
}
"""Files and folders of the bench with what it could not do before."""
ORDER = (
    *("core", "sites", "methods", "interop", "enable, tune, load", "serve", "bench", *NEW.values()),
    *("demo", "cli"),
)


def part_of(path: str, *, old: bool) -> str:
    """The part that a file of the package belongs to; ``path`` is relative to the package and has no suffix."""
    if old:
        for part, names in MOVED.items():
            if any(path == name or path.startswith(f"{name}/") for name in names):
                return part
    for place, part in NEW.items():
        if path == place or path.startswith(f"{place}/"):
            return part
    top = path.split("/")[0]
    return top if top in FOLDERS and "/" in path else "enable, tune, load"


def code_lines(source: str) -> int:
    """Number of lines with code."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in SILENT for line in range(t.start[0], t.end[0] + 1)}
    return len(lines - docstrings)


def counts(revision: str | None) -> Counter[str]:
    """Part → lines of code at a revision, or in the working tree."""
    by_part: Counter[str] = Counter()
    if revision is None:
        sources = {
            str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE).rglob("*.py")
        }
    else:
        listed = git("ls-tree", "-r", "--name-only", revision, PACKAGE).split()
        sources = {path: git("show", f"{revision}:{path}") for path in listed if path.endswith(".py")}
    for path, source in sources.items():
        name = path.removeprefix(PACKAGE).removesuffix(".py")
        by_part[part_of(name, old=revision is not None)] += code_lines(source)
    return by_part


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
    return done.stdout


def table(before: Counter[str], now: Counter[str]) -> str:
    rows = [(part, before[part], now[part]) for part in ORDER]
    rows.append(("**all**", before.total(), now.total()))
    lines = [f"| {part} | {old:,} | {new:,} |" for part, old, new in rows]
    return "\n".join(["| part | before | now |", "|---|---|---|", *lines])


def main() -> None:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n{table(counts(BEFORE), counts(None))}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
