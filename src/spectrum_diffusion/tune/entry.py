"""The one entry to calibration."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.schedule import check_integer, is_list
from ..errors import InvalidOptionError
from ..plan import Plan
from .planning import METHOD, tune_plan
from .samples import OnRun, Prompt
from .threshold import tune_threshold

NFE = 14


def tune(
    pipe: Any,
    *given: Any,
    prompts: Sequence[Prompt] | None = None,
    method: str = METHOD,
    nfe: int | Iterable[int] | None = None,
    seeds: Sequence[int] = (0,),
    call: Mapping[str, Any] | None = None,
    on_run: OnRun = lambda _: None,
    **options: Any,
) -> list[Plan]:
    """Calibrate a method for a model: ``tune(pipe, prompts, method="spectrum", nfe=14)``.

    With "spectrum", a schedule is searched and its weights are fitted: :func:`tune_plan` has the options. With an
    adaptive method, such as "teacache", the threshold for a number of evaluations is found: :func:`tune_threshold`.
    Afterwards no method is enabled on the pipeline, even if one was before.

    Args:
        pipe: a diffusers pipeline.
        given: the prompts, if they are not passed by name. ``tune(pipe, method, prompts)`` of earlier versions works.
        prompts: texts; or, for pipelines that need more, keyword arguments of their call.
        method: "spectrum", or a method with a ``threshold``.
        nfe: wanted number of evaluations, or several; 14 by default.
        seeds: seeds of the noise. For "spectrum" a single one, from which the seeds of the pairs count up.
        call: further keyword arguments of the pipeline's call, such as ``num_inference_steps``.
        on_run: called with what was done: after each generation, or after each part of a search.
        options: for "spectrum" those of :func:`tune_plan`; else options of the method, which stay fixed.

    Returns:
        A plan for each ``nfe``, for ``enable(pipe, plan=…)``.

    Raises:
        InvalidOptionError: a method that cannot be tuned, a wrong option, or an ``nfe`` out of reach.
        UnsupportedModelError: the method does not work on the pipeline.
    """
    method, prompts = _sorted_out(given, method, prompts)
    if not callable(on_run):
        raise InvalidOptionError(f"on_run={on_run!r} is not callable: pass a function that takes a string")
    if nfe is None:
        nfe = [] if method == METHOD and options.get("speedup") is not None else [NFE]
    elif options.get("speedup") is not None:
        raise InvalidOptionError("nfe and speedup both determine the number of evaluations: pass only one of them")
    wanted = [check_integer("nfe", count, least=1) for count in (nfe if is_list(nfe) else [nfe])]
    if not wanted and options.get("speedup") is None:
        raise InvalidOptionError("nfe=[] is empty: pass one or more numbers of evaluations")
    if method == METHOD and (unknown := options.keys() - _options()):
        raise InvalidOptionError(
            f"tune has no option {min(unknown)!r} for {METHOD}: its options are {', '.join(_options())}; schedule and "
            "weights are what it finds"
        )
    tuned = tune_plan if method == METHOD else tune_threshold
    return tuned(pipe, method, prompts, nfe=wanted, seeds=seeds, call=call, on_run=on_run, **options)


def _options() -> dict[str, Any]:
    """The options of :func:`tune_plan` that other methods have not."""
    shared = inspect.signature(tune).parameters
    return {name: option for name, option in inspect.signature(tune_plan).parameters.items() if name not in shared}


def _sorted_out(given: tuple[Any, ...], method: str, prompts: Any) -> tuple[str, Any]:
    """Method and prompts, by place or by name."""
    rest = list(given)
    if rest and isinstance(rest[0], str) and (len(rest) == 2 or prompts is not None):
        method = rest.pop(0)  # tune(pipe, method, prompts)
    if rest and prompts is None:
        prompts = rest.pop(0)
    if rest:
        raise InvalidOptionError(
            f"tune got {len(given)} values beside the pipeline: pass the prompts, and everything else by name"
        )
    return method, prompts if prompts is not None else []
