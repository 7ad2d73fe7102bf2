"""What a command was asked for, checked before a model is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.images import describe_image
from ..core.words import unknown_choice
from ..errors import InvalidOptionError
from .guard import MistakeError
from .lora import parse_lora

if TYPE_CHECKING:
    from ..bench.evaluate import Row

DEFAULT_MODEL = "tiny-flux"
OFFLOADS = ("none", "model", "sequential", "group")
DTYPES = ("float32", "float16", "bfloat16")
PLAN = "plan:"
"""What a plan's file begins with among the methods."""
RESERVED = {"prompt", "generator", "output_type", "callback_on_step_end"}
"""Arguments of a pipeline's call that the commands pass themselves."""
MAX_SEED = 2**63 - 1
_SECOND_OPTION = re.compile(r":([A-Za-z_][\w-]*=)")
_SIZE = re.compile(r"(\d+)(?:[x×](\d+))?")


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What to sample, and with which model; None is the pipeline's own default.

    Raises:
        MistakeError: a value that no pipeline can take.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    model: str = DEFAULT_MODEL
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None  # (width, height)
    frames: int | None = None
    device: str | None = None
    dtype: str | None = None
    offload: str = "none"
    negative_prompt: str | None = None
    image: str | None = None
    strength: float | None = None
    lora: tuple[str, ...] = ()
    call: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise MistakeError("there is no prompt: give one or more, or a file of them with --prompts")
        if any(not prompt.strip() for prompt in self.prompts):
            raise MistakeError("a prompt is empty: describe what to sample")
        _check_positive("--steps", self.steps)
        _check_positive("--frames", self.frames)
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise MistakeError(f"--seed {seed} is out of range: give a whole number within 0 … 2⁶³−1")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise MistakeError(f"--guidance {self.guidance} is out of range: give a finite number ≥ 0")
        check_choice("--offload", self.offload, OFFLOADS)
        if self.dtype is not None:
            check_choice("--dtype", self.dtype, DTYPES)
        check_model(self.model)
        self._check_image()
        for lora in self.lora:
            parse_lora(lora)

    def _check_image(self) -> None:
        if self.image is not None:
            describe_image(Path(self.image))
        if self.strength is None:
            return
        if self.image is None:
            raise MistakeError(f"--strength {self.strength} says how much of an image changes: add --image FILE")
        if not 0 < self.strength <= 1:
            raise MistakeError(f"--strength {self.strength} is out of range: give a number above 0, and at most 1")

    def call_options(self) -> dict[str, Any]:
        """The arguments of the pipeline's call that were given, JSON-ready: an image is its file and digest."""
        width, height = self.size or (None, None)
        asked = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "width": width,
            "height": height,
            "num_frames": self.frames,
            "negative_prompt": self.negative_prompt,
            "image": describe_image(Path(self.image)) if self.image else None,
            "strength": self.strength,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        for name in RESERVED & self.call.keys():
            raise MistakeError(f"--call {name}=… would replace what the command passes: leave it out")
        for name in given.keys() & self.call.keys():
            raise MistakeError(f"--call {name}={_shown(self.call[name])} has an option of its own: give one of the two")
        return {**given, **self.call}


@dataclass(frozen=True)
class MethodSpec:
    """A method with its options, as typed on the command line: ``taylor:order=2,speedup=5``.

    With a ``plan`` its method and options; those that are given win.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    plan: str | None = None

    @classmethod
    def planned(cls, file: str, options: dict[str, Any], name: str | None = None) -> MethodSpec:
        """The method of a plan's file; ``name`` is what was asked for beside it."""
        from ..plan import read_plan

        plan = read_plan(file)
        return cls(plan.applied(name or plan.method, {})[0], options, file)

    @property
    def label(self) -> str:
        options = ",".join(f"{key}={_shown(value)}" for key, value in self.options.items())
        name = self.name if self.plan is None else f"{PLAN}{self.plan}"
        return f"{name}:{options}" if options else name

    def takes(self, option: str) -> bool:
        """Whether the method has such an option; unknown methods are left to :meth:`check`."""
        from ..methods import METHODS

        cls = METHODS.get(self.name)
        return cls is None or option in cls.defaults() or not cls.knows_options()

    def check(self, steps: int | None) -> None:
        """Raise :class:`SpectrumError` for an unknown method or option, or a value wrong for ``steps``."""
        from ..methods import make_method

        if "=" in self.name:
            name, _, options = self.name.partition(":")
            flags = " ".join(f"--option {option}" for option in re.split("[:,]", options) if "=" in option)
            raise MistakeError(f"--method {self.name} names options too: write --method {name} {flags}")
        method = make_method(self.name, **self.all_options())
        if steps is not None:
            method.begin(steps)

    def untouched_steps(self, taken: int, asked: int | None) -> int:
        """The steps that the untouched pipeline takes where this method took ``taken``, being asked for ``asked``."""
        from ..methods import make_method

        method = make_method(self.name, **self.all_options())
        return round(taken * asked / method.sampler_steps(asked)) if asked else taken

    def row(self) -> Row:
        """The row of an evaluation."""
        from ..bench.evaluate import Row

        return Row(self.name, self.options, self.label, self.plan)

    def all_options(self) -> dict[str, Any]:
        """The options, those of the plan included."""
        from ..plan import read_plan

        return self.options if self.plan is None else read_plan(self.plan).applied(self.name, self.options)[1]


def _spec(name: str, options: dict[str, Any]) -> MethodSpec:
    return MethodSpec.planned(name.removeprefix(PLAN), options) if name.startswith(PLAN) else MethodSpec(name, options)


def parse_methods(text: str, defaults: dict[str, Any]) -> tuple[MethodSpec, ...]:
    """``a,b:x=1,y=2,c`` → three methods: an item ``key=value`` is one more option of the one before it.

    ``plan:FILE`` is the method of a plan.
    """
    typed: list[tuple[str, list[str]]] = []
    for item in (part.strip() for part in re.split(r",(?![^\[]*\])", text)):
        head, equals, _ = item.partition("=")
        name = head.rpartition(":")[0] if equals else item  # names of other packages' caches have a colon of their own
        if name:
            typed.append((name, [item.removeprefix(f"{name}:")] if equals else []))
        elif equals and typed:
            typed[-1][1].append(item)
        else:
            raise MistakeError(f"--methods {text!r} has {item!r} where a method's name belongs: write a,b:option=1,c")
    specs = tuple(_spec(name, {**defaults, **parse_options(options)}) for name, options in typed)
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise MistakeError(f"--methods {text!r} has {label!r} twice: name each once, or give them other options")
    return specs


def parse_options(pairs: Iterable[str], flag: str = "--option") -> dict[str, Any]:
    """``["order=2", "evaluated=[0,1,5]"]`` → values as in JSON; a value that is not JSON is a string.

    Raises:
        MistakeError: a pair is not written name=value, holds two options, or repeats a name.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        name = key.replace("-", "_")
        if not equals or not key or not value:
            raise MistakeError(f"{flag} {pair!r} is not written name=value: write for example interval=3")
        if _SECOND_OPTION.search(value):
            commas = _SECOND_OPTION.sub(r",\1", pair)
            raise MistakeError(f"{pair!r} joins options with a colon: separate them with commas, as in {commas}")
        if name in options:
            raise MistakeError(f"option {name} is given twice, as {_shown(options[name])} and {value}: give it once")
        options[name] = _value(value)
    return options


def join_options(shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a flag of their own (``--speedup``, ``--site``) with those of ``--option``.

    Raises:
        MistakeError: both set the same option.
    """
    for name in shared.keys() & options.keys():
        raise MistakeError(
            f"--{name} {_shown(shared[name])} and --option {name}={_shown(options[name])} set the same option: give one"
        )
    return {**shared, **options}


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``64`` or ``96x64`` (width x height) → (width, height)."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or 0 in (size := (int(match[1]), int(match[2] or match[1]))):
        raise MistakeError(f"--size {text!r} is not a size: write 512, or WIDTHxHEIGHT such as 768x512")
    return size


def parse_seeds(text: str | None, seed: int) -> tuple[int, ...]:
    """``0,1,2`` → seeds; without a list the one seed."""
    if text is None:
        return (seed,)
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise MistakeError(f"--seeds {text!r} is not a list of integers: write 0,1,2") from None


def read_prompts(given: Iterable[str], source: str | None, model: str = "") -> tuple[str, ...]:
    """The prompts of the command line, then those of a list, a file or standard input.

    Args:
        given: the prompts that were typed.
        source: what :func:`load_prompts` takes.
        model: the model that samples them: the list ``tiny`` may be its own.
    """
    from ..bench.prompts import load_prompts

    return (*given, *(prompt.text for prompt in (load_prompts(source, model=model) if source else ())))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise MistakeError(f"{name} {value} is out of range: give a whole number ≥ 1")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Report a value that is none of the choices.

    Raises:
        MistakeError: it is none of them.
    """
    if value not in choices:
        raise MistakeError(unknown_choice(f"{name} {value!r}", value, choices))


def check_model(model: str, option: str = "--model") -> None:
    """Report a wrong folder or name before any work; an id on the Hub is checked when it is loaded.

    Raises:
        MistakeError: it cannot be loaded.
    """
    from ..loading import check_source

    if model == DEFAULT_MODEL:  # the shipped model, even beside a folder of its name
        return
    try:
        check_source(model, option)
    except InvalidOptionError as error:
        raise MistakeError(str(error)) from error
