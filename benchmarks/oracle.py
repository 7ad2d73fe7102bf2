"""How much any weights could still gain: weights fitted to the very image that they are used for.

python -m benchmarks.oracle [--images 16] [--write docs/results]
python -m benchmarks.oracle --searched tiny-flux tiny-sd3 [--images 8] [--runs 40] [--write docs/results]

The schedule is the default's, or searched for each image with weights fitted to it. Nobody can have these weights,
since they need the untouched image: they indicate what better weights and schedules could reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from spectrum_diffusion.bench.prompts import load_prompts, spread
from spectrum_diffusion.handle import enable_method
from spectrum_diffusion.methods import make_method
from spectrum_diffusion.tune.driven import Driven, Session
from spectrum_diffusion.tune.fit import Fitted, PrefixCache, fit
from spectrum_diffusion.tune.reference import Reference, record
from spectrum_diffusion.tune.samples import Pair
from spectrum_diffusion.tune.search import Limits, Schedule, ScheduleSearch, cost_of, symmetric

from .marks import command, replace_block
from .small_models import COUNTS, STEPS, VIDEOS, load, parser_of, pixels, psnr, shown

SEED = 3000
RIDGE = 1e-4
CALL = {"num_inference_steps": STEPS}


def scores(pipe: Any, pair: Pair, count: int, runs: int) -> list[float]:
    """PSNR in dB of the default, of weights fitted to this image on the default's schedule, and on a searched one.

    The last is missing where ``runs`` is 0.
    """
    untouched = pixels(pipe, pair)
    with enable_method(pipe, make_method("spectrum", speedup=STEPS / count)) as handle:
        images = [pixels(pipe, pair)]
        schedule = handle.summary().evaluated
    with enable_method(pipe, Driven()) as handle:
        session = Session(pipe, handle, CALL)
        plans = list(oracles(session, tuple(schedule), record(session, [pair]), runs))
    for plan in plans:
        with enable_method(
            pipe, make_method("spectrum", site="sampler", evaluated=plan.schedule, step_weights=plan.rows)
        ):
            images.append(pixels(pipe, pair))
    return [psnr(image, untouched) for image in images]


def oracles(session: Session, schedule: Schedule, reference: Reference, runs: int) -> Iterator[Fitted]:
    """Weights fitted to the reference on a schedule, and on the best one that a search from there finds."""
    cache = PrefixCache()

    def fitted(steps: Schedule) -> Fitted:
        return fit(session, steps, [reference], RIDGE, cache)

    yield fitted(schedule)
    if runs:
        search = ScheduleSearch(lambda steps: cost_of(fitted(steps).errors), STEPS, Limits(runs=runs), SEED)
        yield fitted(search.best([schedule, symmetric(STEPS, len(schedule))]))


def measured(model: str, images: int, runs: int) -> str:
    """A row of the table."""
    pipe = load(model)
    prompts = spread(load_prompts("tiny", model=model), images)
    pairs = [Pair(prompt.text, SEED + number) for number, prompt in enumerate(prompts)]
    cells = []
    for count in COUNTS:
        for values in zip(*(scores(pipe, pair, count, runs) for pair in pairs), strict=True):
            cells.append(shown(values))
    return f"| {model} | {' | '.join(cells)} |"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=16, help="images of each model; videos get half as many")
    parser.add_argument("--searched", action="store_true", help="also search the schedule for each image")
    parser.add_argument("--runs", type=int, default=40, help="schedules that each search tries")
    arguments = parser.parse_args()
    runs = arguments.runs if arguments.searched else 0
    names = ("default", "oracle", "oracle, searched")[: 3 if runs else 2]
    heads = [f"{name}, {count}" for count in COUNTS for name in names]
    lines = [f"| mean / worst tenth, dB | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for model in arguments.models:
        lines.append(measured(model, arguments.images // 2 if model in VIDEOS else arguments.images, runs))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + f"\n\n`{command('oracle')}`; torch {torch.__version__}, CPU, one thread; λ = {RIDGE:g}."
    if arguments.write:
        replace_block(arguments.write / "oracle.md", text, "searched" if runs else "oracle")


if __name__ == "__main__":
    main()
