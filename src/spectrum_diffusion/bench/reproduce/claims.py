"""What the paper claims, each asked of every model: confirmed, the other way round, or no difference seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..evaluate.statistics import ENOUGH, Estimate, difference, verdict
from ..evaluate.tables import line
from .paper import SLOPES, Setting, paper_value

if TYPE_CHECKING:
    from . import Reproduced

Values = dict[tuple[str, int], float | None]
"""By prompt and seed."""

WORDS = {
    "better": "**yes**",
    "worse": "**no**",
    "no difference seen": "open",
    "too few prompts": "too few",
}
"""A paired difference over prompts decides: its 95 % interval lies above zero, below, or holds it."""

LEGEND = f"""**yes**: our small model says so too; **no**: it says the opposite; open: the interval of the paired
difference holds zero; too few: fewer than {ENOUGH} prompts; in part: at some slopes. Then our two numbers, PSNR in dB
with the cost in evaluations, and after "paper" its own where it has that row. Compared are the rows that the paper
compares: what they cost here stands beside them, and isn't always the same. Its TeaCache rows are at thresholds that
we don't know; ours have as many evaluations as Spectrum."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper says.

    Attributes:
        text: in a few words.
        tables: where it can be seen; the first that a model has counts.
        ask: what one table on one model says of it; None where a row that is needed failed, or there is none.
    """

    text: str
    tables: tuple[str, ...]
    ask: Callable[[Reproduced], str | None]


def claims_table(found: Sequence[Reproduced]) -> str:
    """A line a claim, a column a model; empty where nothing was asked."""
    models = {one.key: one.ran for one in found if one.results}
    by = {(one.name, one.key): one for one in found if one.results}
    answers = {claim.text: [_answer(claim, key, by) for key in models] for claim in CLAIMS}
    lines = [line([text, *(cell or "–" for cell in cells)]) for text, cells in answers.items() if any(cells)]
    return "\n".join([LEGEND, "", *header(["the paper says", *models.values()]), *lines]) if lines else ""


def header(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(cells), "|---" * len(cells) + "|"]


def _answer(claim: Claim, key: str, by: Mapping[tuple[str, str], Reproduced]) -> str:
    for table in claim.tables:
        if (found := by.get((table, key))) and (answer := claim.ask(found)):
            return answer
    return ""


def _better(winner: str, loser: str, found: Reproduced) -> str | None:
    """Whether one setting is nearer to the untouched pictures than another."""
    word = _compared(found, winner, loser)
    if word is None:
        return None
    shown = " against ".join(f"{found.psnr(label):.1f} ({found.cost(label)})" for label in (winner, loser))
    return f"{word} {shown}{_paper(found, winner, loser)}"


def _paper(found: Reproduced, *labels: str) -> str:
    settings = {setting.label: setting for setting in found.table.settings}
    values = [paper_value(found.name, found.model, settings[label], "psnr") for label in labels]
    known = [f"{value:.1f}" for value in values if value is not None]
    return f"; paper {', '.join(known)}" if len(known) == len(values) else ""


def _best(row: str, found: Reproduced) -> str | None:
    """Whether a row of a sweep is the best: in each column, against the best of the others."""
    words, tops = [], []
    for cells in _columns(found):
        means = {name: mean for name, setting in cells.items() if (mean := found.psnr(setting.label)) is not None}
        if len(means) < len(cells):
            return None
        tops.append(max(means, key=means.__getitem__))
        rival = max((name for name in means if name != row), key=means.__getitem__)
        words.append(_compared(found, cells[row].label, cells[rival].label))
    return f"{_all_in_all(words)}; best on average: {', '.join(dict.fromkeys(tops))}"


def _rises(low: str, middle: str, high: str, found: Reproduced) -> str | None:
    """Whether quality rises from ``low`` to ``middle``, and by less to ``high``, but doesn't fall."""
    words, gains = [], []
    for cells in _columns(found):
        means = [found.psnr(cells[name].label) for name in (low, middle, high)]
        if None in means:
            return None
        first, second, third = (mean or 0.0 for mean in means)
        gains.append((second - first, third - second))
        rises = _compared(found, cells[middle].label, cells[low].label)
        falls = _compared(found, cells[middle].label, cells[high].label) == WORDS["better"]
        less = third - second < second - first
        words.append(rises if rises != WORDS["better"] or (less and not falls) else "in part")
    up, then = (sum(gain[place] for gain in gains) / len(gains) for place in (0, 1))
    return f"{_all_in_all(words)}; {up:+.1f} dB from {low} to {middle}, {then:+.1f} from there to {high}"


def _all_in_all(words: Sequence[str | None]) -> str:
    """One word where all columns say the same, else how many say what."""
    counts = {word: words.count(word) for word in dict.fromkeys(words) if word}
    if len(counts) == 1:
        return next(iter(counts))
    return "in part (" + ", ".join(f"{word} at {count}" for word, count in counts.items()) + " slopes)"


def _columns(found: Reproduced) -> list[dict[str, Setting]]:
    """The columns of a sweep, each by its rows."""
    columns: dict[str, dict[str, Setting]] = {}
    for setting in found.table.settings:
        if setting.cell:
            columns.setdefault(setting.cell[1], {})[setting.cell[0]] = setting
    return list(columns.values())


def _nearer(winner: str, loser: str, found: Reproduced) -> str | None:
    """Whether the latents of one setting stay nearer to the untouched run, step by step."""
    if found.problem_of(winner) or found.problem_of(loser):
        return None
    words = []
    for step in found.table.path:
        gap = _gap(found, winner, loser, partial(_paths, step))
        if gap is None:
            return None
        words.append(f"{step}: {WORDS[verdict(gap, False)]}")
    return ", ".join(words)


def _compared(found: Reproduced, winner: str, loser: str) -> str | None:
    """The word for whether one row has the higher PSNR; None where one is not whole."""
    if found.psnr(winner) is None or found.psnr(loser) is None:
        return None
    gap = _gap(found, winner, loser, _psnrs)
    return WORDS[verdict(gap, True)] if gap else None


def _gap(found: Reproduced, one: str, other: str, values: Callable[[Reproduced, str], Values]) -> Estimate | None:
    gap = difference(values(found, one), values(found, other))
    return gap if gap.mean is not None else None


def _psnrs(found: Reproduced, label: str) -> Values:
    return {(unit["prompt"], unit["seed"]): unit["metrics"].get("psnr") for unit in found.units(label)}


def _paths(step: int, found: Reproduced, label: str) -> Values:
    """RMSE after a step; nothing of a run that has fewer."""
    return {
        (unit["prompt"], unit["seed"]): unit["path_rmse"][step - 1]
        for unit in found.units(label)
        if len(unit.get("path_rmse") or ()) >= step
    }


MAIN = ("table1", "table2")
EXTERNAL_CACHES = {
    14: ("15 steps", "FORA N 4", "ToCa N 4", "TeaCache at 14", "TaylorSeer N 4 O 1", "TaylorSeer N 4 O 2"),
    10: ("FORA N 6", "ToCa N 6", "TeaCache at 10", "TaylorSeer N 6 O 1", "TaylorSeer N 6 O 2"),
}
"""Labels of the rows that the paper holds against Spectrum's: 13 to 16 evaluations, and 9 to 12."""

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(f"Spectrum at {nfe} is better than {rival}", MAIN, partial(_better, f"Spectrum α {SLOPES[nfe]:g}", rival))
        for nfe, rivals in EXTERNAL_CACHES.items()
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
    Claim("λ = 0.1 is the best, at five slopes", ("fig5",), partial(_best, "λ 0.1")),
    Claim("quality rises from M 2 to 4, to 6 by less", ("fig6",), partial(_rises, "M 2", "M 4", "M 6")),
    Claim(
        "Spectrum (10) keeps the latents nearer than TaylorSeer N 6 (12), at step",
        ("table5", "table8"),
        partial(_nearer, "Spectrum α 3", "TaylorSeer N 6 O 1"),
    ),
)
