"""What the page shows, without the page: images side by side, methods at equal cost, one number over the steps."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..bench.metrics import METRICS
from ..core.forecast import chebyshev_weights, taylor_weights
from ..core.path import Path
from ..core.schedule import nodes
from ..core.signatures import call_parameters
from ..core.summary import Summary
from ..discovery import denoisers_of
from ..errors import InvalidOptionError, UnsupportedModelError
from ..handle import enable
from ..loading import named_models, quiet

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = ("spectrum", "spectrum-blend", "paper", "taylor", "reuse", "fewer-steps")
"""Methods of the gallery: those whose cost is known in advance, so that it can be equal."""
LONGEST_PROMPT, MOST_STEPS = 1000, 200
DISPLAY = 384
"""Smaller images are enlarged by a whole factor, so that every shown pixel was sampled."""

Report = Callable[[int, str], None]
"""Told the step that was done, and of which generation."""


@dataclass(frozen=True)
class Sample:
    """One generation."""

    image: Image
    seconds: float
    summary: Summary | None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to generate."""

    prompt: str
    seed: int
    steps: int
    speedup: float

    def check(self) -> None:
        """Refuse what no model can do.

        Raises:
            InvalidOptionError: the message names the value.
        """
        if not self.prompt.strip():
            raise InvalidOptionError("the prompt is empty: write what the image should show")
        if len(self.prompt) > LONGEST_PROMPT:
            raise InvalidOptionError(
                f"the prompt has {len(self.prompt)} characters, more than {LONGEST_PROMPT}: shorten it"
            )
        if not 2 <= self.steps <= MOST_STEPS:
            raise InvalidOptionError(f"steps={self.steps} is out of range: choose 2 to {MOST_STEPS}")
        if math.isnan(self.speedup):
            raise InvalidOptionError("the speed-up is not a number: choose 1 or more")
        if self.speedup < 1:
            raise InvalidOptionError(f"a speed-up of {self.speedup:g} would add steps: choose 1 or more")


@dataclass(frozen=True)
class Curves:
    """One number of the denoiser's output over the steps, and its forecasts after the step ``known[-1]``.

    Attributes:
        truth: computed at every step, (T,).
        known: the evaluated steps up to now.
        fit, line, damped: step → value, of the Chebyshev fit, the undamped line, and the default's damped line.
    """

    truth: np.ndarray
    known: list[int]
    fit: dict[int, float]
    line: dict[int, float]
    damped: dict[int, float]


class Studio:
    """Pipelines by name, loaded when they are first used. One thread may call it at a time.

    Args:
        load: loads a pipeline by its name.
        models: names to choose from, the first is the one to start with.
    """

    def __init__(self, load: Callable[[str], Any], models: list[str]) -> None:
        self.models, self._load = models, load
        self._pipes: dict[str, Any] = {}

    def pipe(self, model: str) -> Any:
        """The pipeline of a model.

        Raises:
            InvalidOptionError: the model is not one of those to choose from.
            UnsupportedModelError: it does not make images from text alone.
        """
        if model not in self.models:
            raise InvalidOptionError(f"the model {model!r} is not offered here: choose one of {', '.join(self.models)}")
        if model not in self._pipes:
            pipe = self._load(model)
            parameters = call_parameters(pipe)
            if "prompt" not in parameters or "num_frames" in parameters or "image" in parameters:
                raise UnsupportedModelError(
                    f"{type(pipe).__name__} does not make images from text alone: choose a text-to-image model"
                )
            self._pipes[model] = pipe
        return self._pipes[model]

    def steps(self, model: str) -> int:
        """The number of steps that the pipeline's call uses by default."""
        default = call_parameters(self.pipe(model))["num_inference_steps"].default
        return default if isinstance(default, int) else 50

    def sample(self, model: str, wish: Wish, method: str | None, report: Report) -> Sample:
        """One generation, with a method or untouched."""
        pipe, label = self.pipe(model), method or "untouched"

        def on_end(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            report(step + 1, label)
            return kwargs

        def call() -> tuple[Image, float]:
            generator = torch.Generator().manual_seed(wish.seed)
            begin = time.perf_counter()
            output = pipe(wish.prompt, num_inference_steps=wish.steps, generator=generator, callback_on_step_end=on_end)
            return output.images[0], time.perf_counter() - begin

        if method is None:
            return Sample(*call(), None)
        with enable(pipe, method, speedup=wish.speedup) as handle:
            image, seconds = call()
            return Sample(image, seconds, handle.summary())

    def gallery(self, model: str, wish: Wish, report: Report) -> Iterator[tuple[str, Sample]]:
        """The untouched image, then each method of :data:`SHOWN` that works on the model, at the same speed-up."""
        yield "untouched", self.sample(model, wish, None, report)
        for method in SHOWN:
            try:
                yield method, self.sample(model, wish, method, report)
            except UnsupportedModelError:
                continue

    def outputs(self, model: str, wish: Wish, report: Report) -> np.ndarray:
        """The denoiser's output of the first branch at every step of an untouched run, float32 (T, N)."""
        pipe = self.pipe(model)
        kept: list[torch.Tensor] = []
        (denoiser, *_) = denoisers_of(pipe, "output").values()
        hook = denoiser.register_forward_hook(lambda _, __, output: kept.append(_first_tensor(output)))
        try:
            self.sample(model, wish, None, report)
        finally:
            hook.remove()
        calls = max(1, len(kept) // wish.steps)  # one for each guidance branch
        return torch.stack(kept[::calls]).numpy()


def _first_tensor(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor[0].detach().float().flatten().cpu()


def curves(outputs: np.ndarray, speedup: float, now: int, rank: float) -> Curves:
    """One number of recorded outputs, with its forecasts from the default's schedule.

    Args:
        outputs: at every step, (T, N).
        speedup: steps over evaluated steps.
        now: the last step that was run.
        rank: which number: 0 is the one that the damped line foretells best, 1 the worst.
    """
    total = len(outputs)
    evaluated = nodes(total, max(3, math.floor(total / speedup)))
    known = [step for step in evaluated if step <= max(now, evaluated[1])]
    until = next((step for step in evaluated if step > known[-1]), total - 1)
    targets = range(known[-1] + 1, until + 1)
    path = Path()
    for step in known:
        path.append(step, (torch.from_numpy(outputs[step][None]),))
    damped = {step: next(path.line(step))[0].numpy() for step in targets}  # (N,) each
    errors = sum((np.abs(damped[step] - outputs[step]) for step in targets), np.zeros(outputs.shape[1]))
    place = np.argsort(errors / (outputs.std(axis=0) + 1e-12))[round(rank * (outputs.shape[1] - 1))]
    truth = outputs[:, place].astype(float)
    return Curves(
        truth,
        known,
        {step: float(chebyshev_weights(tuple(known), step, total) @ truth[known]) for step in range(until + 1)},
        {step: float(taylor_weights(tuple(known), step, 1) @ truth[known]) for step in (known[-1], *targets)},
        {known[-1]: float(truth[known[-1]]), **{step: float(damped[step][place]) for step in targets}},
    )


def psnr(image: Image, reference: Image) -> float:
    """In dB; infinite for equal images."""
    from ..bench.metrics import to_video

    return float(METRICS["psnr"].compare(to_video(image), to_video(reference)))


def enlarged(image: Image) -> Image:
    """The image as large as the page shows it."""
    from PIL.Image import Resampling

    factor = max(1, DISPLAY // max(image.size))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def image_models() -> list[str]:
    """The small models that make images from text, by the class that their folder names; nothing is loaded."""
    import diffusers

    names = []
    for name, folder in named_models().items():
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        with quiet():  # the import of a pipeline tells what some models would need
            pipeline = getattr(diffusers, index["_class_name"], None)
        if pipeline is not None and "num_frames" not in inspect.signature(pipeline.__call__).parameters:
            names.append(name)
    return names
