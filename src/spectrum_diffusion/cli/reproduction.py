"""The command ``reproduce``: which tables on which models, one after the other, into one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluation import progress_meter
from .guard import MistakeError
from .request import Request

if TYPE_CHECKING:
    from ..prompts import Prompt
    from ..reproduce import Reproduced


def chosen(names: list[str]) -> list[str]:
    """Keys of the tables that were asked for.

    Raises:
        MistakeError: one that isn't there.
    """
    from ..reproduce import TABLES

    wanted = list(TABLES) if names == ["all"] else names
    for name in wanted:
        if name not in TABLES:
            raise MistakeError(f"{name!r} is no table here: choose among {', '.join(TABLES)}, or all")
    return list(dict.fromkeys(wanted))


def run(names: list[str], real: bool, limit: int, folder: Path, metrics: tuple[str, ...] | None) -> list[Reproduced]:
    """Every table on every model of it that can be had; the others say why not.

    The work goes model by model, so that each is loaded once; what comes back is in the order of the tables.
    """
    from ..reproduce import MODELS, TABLES, Reproduced
    from .drawing import load

    found: dict[tuple[str, str], Reproduced] = {}
    for key, model in MODELS.items():
        tables = [name for name in names if key in TABLES[name].models]
        source = model.real if real else model.tiny
        problem = "" if real else _missing(source)
        if problem or not tables:
            found |= {(name, key): Reproduced(name, model, source, None, problem) for name in tables}
            continue
        pipe = load(Request(prompts=(source,), model=source))
        for name in tables:
            found[name, key] = _one(name, key, pipe, source, real, limit, folder / key, metrics)
    return [found[name, key] for name in names for key in TABLES[name].models]


def _missing(name: str) -> str:
    from ..default_model import small_models

    return "" if name in small_models() else f"{name} is not in this checkout (training/ has its recipe)"


def _one(
    name: str, key: str, pipe: Any, source: str, real: bool, limit: int, folder: Path, metrics: tuple[str, ...] | None
) -> Reproduced:
    from ..metrics import METRICS
    from ..reproduce import MODELS, TABLES, reproduce

    prompts = _prompts(TABLES[name].prompts if real else "tiny", limit)
    available = tuple(metric for metric in ("psnr", "ssim", "lpips") if not METRICS[metric].available())
    call: dict[str, Any] = dict(MODELS[key].call) if real else {}
    with progress_meter() as meter:
        return reproduce(
            name,
            key,
            pipe,
            source,
            prompts,
            folder,
            metrics=metrics or available,
            call=call,
            on_unit=meter,
        )


def _prompts(source: str, limit: int) -> tuple[Prompt, ...]:
    """Spread over the list, since lists are ordered by kind."""
    from ..prompts import load_prompts

    every = load_prompts(source)
    return tuple(every[i * len(every) // limit] for i in range(limit)) if len(every) > limit else tuple(every)
