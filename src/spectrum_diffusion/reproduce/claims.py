"""What the paper claims, each asked of every model: confirmed, the other way round, or no difference seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..evaluate.statistics import Estimate, difference, verdict
from .paper import SLOPES, Setting, paper_value

if TYPE_CHECKING:
    from . import Reproduced

WORDS = {
    "better": "**yes**",
    "worse": "**no**",
    "no difference seen": "open",
    "too few prompts": "too few",
}
"""A paired difference over prompts decides: its 95 % interval lies above zero, below, or holds it."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper says.

    Attributes:
        text: in a few words.
        tables: where it can be seen; the first that a model has counts.
        ask: what one table on one model says of it; None where it has not what is needed.
    """

    text: str
    tables: tuple[str, ...]
    ask: Callable[[Reproduced], str | None]


def claims_table(found: Sequence[Reproduced]) -> str:
    """A line a claim, a column a model; empty where nothing was asked."""
    models = list(dict.fromkeys(one.key for one in found if one.results))
    ran = {one.key: one.ran for one in found if one.results}
    by = {(one.name, one.key): one for one in found if one.results}
    lines = []
    for claim in CLAIMS:
        cells = [_answer(claim, key, by) for key in models]
        if any(cells):
            lines.append("| " + " | ".join([claim.text, *(cell or "–" for cell in cells)]) + " |")
    if not lines:
        return ""
    head = "| the paper says | " + " | ".join(ran[key] for key in models) + " |"
    return "\n".join([LEGEND, "", head, "|---" * (len(models) + 1) + "|", *lines])


LEGEND = """**yes**: our small model says so too; **no**: it says the opposite; open: the interval of the paired
difference holds zero. Then our two numbers (PSNR in dB), and after "paper" its own where it has that row."""


def _answer(claim: Claim, key: str, by: Mapping[tuple[str, str], Reproduced]) -> str:
    for table in claim.tables:
        if (found := by.get((table, key))) and (answer := claim.ask(found)):
            return answer
    return ""


def _better(winner: str, loser: str, found: Reproduced) -> str | None:
    """Whether one setting is nearer to the untouched pictures than another."""
    gap = _gap(found, winner, loser, _psnrs)
    if gap is None:
        return None
    means = " against ".join(f"{_mean(found, label):.1f}" for label in (winner, loser))
    return f"{WORDS[verdict(gap, True)]} {means}{_paper(found, winner, loser)}"


def _paper(found: Reproduced, *labels: str) -> str:
    settings = {setting.label: setting for setting in found.table.settings}
    values = [paper_value(found.name, found.model, settings[label], "psnr") for label in labels]
    known = [f"{value:.1f}" for value in values if value is not None]
    return f" (paper {', '.join(known)})" if len(known) == len(values) else ""


def _best(row: str, found: Reproduced) -> str | None:
    """Whether a row of a sweep is the best in its columns: where another is better beyond chance, it isn't."""
    columns, beaten, named = _columns(found), 0, []
    for settings in columns.values():
        means = {setting.cell[0]: _mean(found, setting.label) for setting in settings if setting.cell}
        top = max(means, key=lambda name: means[name])
        named.append(top)
        rival, own = (next(s.label for s in settings if s.cell and s.cell[0] == name) for name in (top, row))
        gap = _gap(found, rival, own, _psnrs) if top != row else None
        beaten += gap is not None and verdict(gap, True) == "better"
    word = "**no**" if beaten else "**yes**" if named.count(row) == len(named) else "open"
    return f"{word}, best at {', '.join(dict.fromkeys(named))}; beaten at {beaten} of {len(columns)} slopes"


def _rises(low: str, middle: str, high: str, found: Reproduced) -> str | None:
    """Whether the gain from ``low`` to ``middle`` is there, and that to ``high`` smaller: means over the columns."""
    gains: list[tuple[float, float]] = []
    for settings in _columns(found).values():
        means = {setting.cell[0]: _mean(found, setting.label) for setting in settings if setting.cell}
        gains.append((means[middle] - means[low], means[high] - means[middle]))
    first, then = (sum(gain[place] for gain in gains) / len(gains) for place in (0, 1))
    rising = sum(gain[0] > 0 for gain in gains)
    word = "**yes**" if rising == len(gains) and 0 <= then < first else "**no**" if not rising else "in part"
    return (
        f"{word} {first:+.1f} dB from {low} to {middle}, {then:+.1f} from there to {high}; "
        f"rises at {rising} of {len(gains)} slopes"
    )


def _columns(found: Reproduced) -> dict[str, list[Setting]]:
    columns: dict[str, list[Setting]] = {}
    for setting in found.table.settings:
        if setting.cell:
            columns.setdefault(setting.cell[1], []).append(setting)
    return columns


def _nearer(winner: str, loser: str, found: Reproduced) -> str | None:
    """Whether the latents of one setting stay nearer to the untouched run, step by step."""
    words = []
    for step in found.table.path:
        gap = _gap(found, winner, loser, partial(_paths, step))
        if gap is None:
            return None
        words.append(f"{step}: {WORDS[verdict(gap, False)]}")
    return ", ".join(words)


def _gap(
    found: Reproduced, one: str, other: str, values: Callable[[Reproduced, str], dict[tuple[str, int], float | None]]
) -> Estimate | None:
    first, second = values(found, one), values(found, other)
    return difference(first, second) if first and second else None


def _psnrs(found: Reproduced, label: str) -> dict[tuple[str, int], float | None]:
    return {(unit["prompt"], unit["seed"]): unit["metrics"].get("psnr") for unit in _units(found, label)}


def _paths(step: int, found: Reproduced, label: str) -> dict[tuple[str, int], float | None]:
    units = [unit for unit in _units(found, label) if unit.get("path_rmse")]
    return {(unit["prompt"], unit["seed"]): unit["path_rmse"][step - 1] for unit in units}


def _units(found: Reproduced, label: str) -> list[dict[str, Any]]:
    return [unit for unit in found.results.units if unit["row"] == label] if found.results else []


def _mean(found: Reproduced, label: str) -> float:
    return float(found.rows[label]["metrics"]["psnr"]["mean"])


MAIN = ("table1", "table2")
RIVALS = {
    14: ("15 steps", "FORA N 4", "ToCa N 4", "TeaCache at 14", "TaylorSeer N 4 O 1", "TaylorSeer N 4 O 2"),
    10: ("FORA N 6", "ToCa N 6", "TeaCache at 10", "TaylorSeer N 6 O 1", "TaylorSeer N 6 O 2"),
}
"""Labels of the rows that stand beside Spectrum's with as many evaluations."""

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(f"Spectrum at {nfe} is better than {rival}", MAIN, partial(_better, f"Spectrum α {SLOPES[nfe]:g}", rival))
        for nfe, rivals in RIVALS.items()
        for rival in rivals
    ),
    *(
        Claim(
            f"TaylorSeer N {interval}: order 1 is better than order 2",
            MAIN,
            partial(_better, f"TaylorSeer N {interval} O 1", f"TaylorSeer N {interval} O 2"),
        )
        for interval in (4, 6)
    ),
    *(
        Claim(
            f"{name}, 10 evaluations: adaptive is better than uniform",
            ("table3",),
            partial(_better, f"{name} adaptive", f"{name} uniform"),
        )
        for name in ("Taylor", "Spectrum")
    ),
    *(
        Claim(
            f"{name}: the last block alone is better than every module",
            ("table4",),
            partial(_better, f"{name} last block", f"{name} module"),
        )
        for name in ("TaylorSeer", "Spectrum")
    ),
    Claim("λ = 0.1 is the best", ("fig5",), partial(_best, "λ 0.1")),
    Claim("quality rises from M 2 to 4, to 6 by little more", ("fig6",), partial(_rises, "M 2", "M 4", "M 6")),
    Claim(
        "Spectrum (10) keeps the latents nearer than TaylorSeer N 6 (12), at step",
        ("table5", "table8"),
        partial(_nearer, "Spectrum α 3", "TaylorSeer N 6 O 1"),
    ),
)
