"""The tables of docs/performance.md, from the results in benchmarks/results/speed.

python -m benchmarks.performance
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectrum_diffusion.bench.speed import ARCHITECTURES, report

from .marks import replace_block

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "speed"
PAGE = ROOT / "docs" / "performance.md"


def main() -> None:
    replace_block(PAGE, scaled(results("measured")), "scaled")
    replace_block(PAGE, full(results("measured")), "full")


def results(kind: str) -> list[dict[str, Any]]:
    """The stored results of a kind, in the order of the architectures."""
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    chosen = (result for result in stored if result["kind"] == kind)
    return sorted(chosen, key=lambda result: list(ARCHITECTURES).index(result["arch"]))


def scaled(stored: list[dict[str, Any]]) -> str:
    """The runs of scaled-down architectures, and where they ran."""
    small = [result for result in stored if result["setting"]["scale"] < 1]
    first = small[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    machine = ", ".join(f"{name} {value}" for name, value in first["machine"].items())
    return f"{report.table(small)}\n\nScale {first['setting']['scale']}, {machine}; {versions}."


def full(stored: list[dict[str, Any]]) -> str:
    """A row for each architecture at its published size: its measurement, or that there is none."""
    measured = {result["arch"]: result for result in stored if result["setting"]["scale"] == 1}
    lines = ["| architecture | size | published weights | full size |", "|---|---|---|---|"]
    for name, architecture in ARCHITECTURES.items():
        size = " × ".join(map(str, architecture.size))
        share = max((row["share"] or 0 for row in measured[name]["rows"]), default=0) if name in measured else 0
        shown = f"{share:.1%} of T/NFE" if share else "not run"
        lines.append(f"| {name} | {size} | `{architecture.model}` | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
