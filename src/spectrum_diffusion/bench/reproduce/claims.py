"""The paper's claims (`claims.csv`), each tested on every model: confirmed, contradicted, or no difference seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..evaluate.statistics import ENOUGH, Values, difference, verdict
from ..evaluate.tables import line
from .paper import Setting, paper_value, read_table
from .result import TableResult

WORDS = {
    "better": "**yes**",
    "worse": "**no**",
    "no difference seen": "open",
    "too few prompts": "too few",
}
"""Answers by the verdict on a paired difference over prompts."""

LEGEND = f"""**yes**: our small model confirms the claim; **no**: it shows the opposite; open: the interval of the
paired difference includes zero; too few: fewer than {ENOUGH} prompts; in part: at some slopes. Then our two numbers,
PSNR in dB with the cost in evaluations, and after "paper" the paper's, if it has that row. The rows compared
are those that the paper compares; their costs here stand beside them and are not always equal. The thresholds
of the paper's TeaCache rows are unknown; ours have as many evaluations as Spectrum."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        text: the claim in a few words.
        tables: the tables that show it; the first one that ran on a model counts.
        test: the answer of one table on one model; None if a row that it needs failed or is missing.
    """

    text: str
    tables: tuple[str, ...]
    test: Callable[[TableResult], str | None]


def claims_table(ran: Sequence[TableResult]) -> str:
    """A table with a row for each claim and a column for each model; empty if no claim could be tested."""
    models = {result.key: result.ran for result in ran if result.results}
    by_place = {(result.name, result.key): result for result in ran if result.results}
    answers = {claim.text: [_answer(claim, key, by_place) for key in models] for claim in CLAIMS}
    lines = [line([text, *(cell or "–" for cell in cells)]) for text, cells in answers.items() if any(cells)]
    return "\n".join([LEGEND, "", *header(["the paper says", *models.values()]), *lines]) if lines else ""


def header(cells: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(cells), "|---" * len(cells) + "|"]


def _answer(claim: Claim, key: str, by_place: Mapping[tuple[str, str], TableResult]) -> str:
    for table in claim.tables:
        if (result := by_place.get((table, key))) and (answer := claim.test(result)):
            return answer
    return ""


def _better(winner: str, loser: str, result: TableResult) -> str | None:
    """Whether one setting is nearer to the reference images than another."""
    word = _compared(result, winner, loser)
    if word is None:
        return None
    ours = " against ".join(f"{result.psnr(label):.1f} ({result.cost(label)})" for label in (winner, loser))
    return f"{word} {ours}{_paper(result, winner, loser)}"


def _paper(result: TableResult, *labels: str) -> str:
    settings = {setting.label: setting for setting in result.table.settings}
    values = [paper_value(result.name, result.model, settings[label], "psnr") for label in labels]
    known = [f"{value:.1f}" for value in values if value is not None]
    return f"; paper {', '.join(known)}" if len(known) == len(values) else ""


def _best(row: str, result: TableResult) -> str | None:
    """Whether a row of a sweep is the best in each column, compared with the best of the other rows."""
    words, best_rows = [], []
    for cells in _columns(result):
        means = {name: mean for name, setting in cells.items() if (mean := result.psnr(setting.label)) is not None}
        if len(means) < len(cells):
            return None
        best_rows.append(max(means, key=means.__getitem__))
        other = max((name for name in means if name != row), key=means.__getitem__)
        words.append(_compared(result, cells[row].label, cells[other].label))
    return f"{_summary(words)}; best on average: {', '.join(dict.fromkeys(best_rows))}"


def _rises(low: str, middle: str, high: str, result: TableResult) -> str | None:
    """Whether quality rises from ``low`` to ``middle``, and rises less, without falling, to ``high``."""
    words, gains = [], []
    for cells in _columns(result):
        means = [result.psnr(cells[name].label) for name in (low, middle, high)]
        if None in means:
            return None
        first, second, third = (mean or 0.0 for mean in means)
        gains.append((second - first, third - second))
        rises = _compared(result, cells[middle].label, cells[low].label)
        falls = _compared(result, cells[middle].label, cells[high].label) == WORDS["better"]
        less = third - second < second - first
        words.append(rises if rises != WORDS["better"] or (less and not falls) else "in part")
    up, then = (sum(gain[place] for gain in gains) / len(gains) for place in (0, 1))
    return f"{_summary(words)}; {up:+.1f} dB from {low} to {middle}, {then:+.1f} from there to {high}"


def _summary(words: Sequence[str | None]) -> str:
    """One word if all columns agree, else how many columns say what."""
    counts = {word: words.count(word) for word in dict.fromkeys(words) if word}
    if len(counts) == 1:
        return next(iter(counts))
    return "in part (" + ", ".join(f"{word} at {count}" for word, count in counts.items()) + " slopes)"


def _columns(result: TableResult) -> list[dict[str, Setting]]:
    """The columns of a sweep, each as row name → setting."""
    columns: dict[str, dict[str, Setting]] = {}
    for setting in result.table.settings:
        if setting.cell:
            columns.setdefault(setting.cell[1], {})[setting.cell[0]] = setting
    return list(columns.values())


def _nearer(winner: str, loser: str, result: TableResult) -> str | None:
    """Whether the latents of one setting stay nearer to the reference, step by step."""
    if result.problem_of(winner) or result.problem_of(loser):
        return None
    words = []
    for step in result.table.path:
        gap = difference(_rmse_after(step, result, winner), _rmse_after(step, result, loser))
        if gap.mean is None:
            return None
        words.append(f"{step}: {WORDS[verdict(gap, False)]}")
    return ", ".join(words)


def _compared(result: TableResult, winner: str, loser: str) -> str | None:
    """The word for whether one row has the higher PSNR; None if a row is incomplete."""
    if result.psnr(winner) is None or result.psnr(loser) is None:
        return None
    gap = difference(_psnrs(result, winner), _psnrs(result, loser))
    return WORDS[verdict(gap, True)] if gap.mean is not None else None


def _psnrs(result: TableResult, label: str) -> Values:
    return {(unit["prompt"], unit["seed"]): unit["metrics"].get("psnr") for unit in result.units(label)}


def _rmse_after(step: int, result: TableResult, label: str) -> Values:
    """Latent RMSE after a step; runs with fewer steps are left out."""
    return {
        (unit["prompt"], unit["seed"]): unit["path_rmse"][step - 1]
        for unit in result.units(label)
        if len(unit.get("path_rmse") or ()) >= step
    }


TESTS: dict[str, Callable[..., str | None]] = {"better": _better, "best": _best, "rises": _rises, "nearer": _nearer}


def _claim(row: Mapping[str, str]) -> Claim:
    return Claim(row["claim"], tuple(row["tables"].split()), partial(TESTS[row["test"]], *row["rows"].split("; ")))


CLAIMS = tuple(_claim(row) for row in read_table("claims.csv"))
