"""What a method is: schedule × forecaster × site, under a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import sites
from ..core import schedule
from ..errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from ..core.decider import Decider
    from ..core.forecast import Weights
    from ..core.history import History
    from ..core.summary import Action

SITES = tuple(sites.GENERAL)
"""The sites at which a general forecaster works."""
TIMES = ("index", "sigma", "log-snr")
SOLVERS = ("dpm++", "unipc")

M = TypeVar("M", bound="AnyMethod")


@dataclass(frozen=True, kw_only=True)
class AnyMethod:
    """What a run asks of any method. Derive from :class:`Method` for one on a fixed schedule.

    Attributes:
        site: where features are read and replaced.
    """

    site: str = "last_block"

    sites: ClassVar[tuple[str, ...]] = SITES
    """The sites that the method can be at."""
    min_points: ClassVar[int] = 1
    """Evaluated features that a branch needs before its first forecast."""
    skip: ClassVar[Action] = "forecast"
    """What a skipped step is: a "forecast", or "partial" where some of the blocks run."""
    in_place: ClassVar[bool] = False
    """Whether the site updates the last kept feature itself on skipped steps, in place of weights."""
    observes: ClassVar[bool] = False
    """Whether another package's cache does all of it, and the run only watches."""
    package: ClassVar[str] = ""
    """The package whose cache it is; "" is this one."""
    sets_steps: ClassVar[bool] = False
    """Whether :meth:`sampler_steps` changes the number of steps."""
    limits: ClassVar[str] = "every denoiser of the table; any other at the output"
    """What the method can be used on, for lists of methods."""

    def __post_init__(self) -> None:
        self.check_choice("site", self.sites)

    def check_integer(self, name: str, *, least: int) -> None:
        """Refuse an option that is not an integer ≥ ``least``; keep it as a plain int."""
        object.__setattr__(self, name, schedule.check_integer(name, getattr(self, name), least=least))

    def check_number(self, name: str, *, least: float, most: float | None = None) -> None:
        """Refuse an option that is not a finite number within ``least … most``; keep it as a plain float."""
        object.__setattr__(self, name, schedule.check_number(name, getattr(self, name), least=least, most=most))

    def check_numbers(self, name: str, *, least: float | None = None) -> None:
        """Refuse an option that is not a list of finite numbers ≥ ``least``; keep it as a tuple."""
        values = getattr(self, name)
        if not schedule.is_list(values):
            raise InvalidOptionError(f"{name} must be a list of numbers, got {values!r}: pass one such as [1.0, 0.5]")
        numbers = tuple(schedule.check_number(name, value, least=least) for value in values)
        if not numbers:
            raise InvalidOptionError(f"{name}=[] is empty: give one or more numbers")
        object.__setattr__(self, name, numbers)

    def check_choice(self, name: str, choices: Sequence[str]) -> None:
        """Refuse an option that is none of the choices."""
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise InvalidOptionError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options by name, with their defaults."""
        return {option.name: option.default for option in fields(cls) if option.init}

    @classmethod
    def knows_options(cls) -> bool:
        """Whether the names of the options are known, so that others can be refused."""
        return True

    @property
    def decides_from_content(self) -> bool:
        """Whether the content of activations decides what runs, and not the step alone."""
        return self.overrides("decider")

    @classmethod
    def overrides(cls, *names: str) -> bool:
        """Whether the class defines one of these methods itself."""
        return any(getattr(cls, name) is not getattr(AnyMethod, name) for name in names)

    @property
    def axis(self) -> str:
        """The axis on which weights are computed, one of :data:`TIMES`."""
        return "index"

    @property
    def solver(self) -> str | None:
        """The solver that a pipeline is to sample with, a name of :data:`SOLVERS`; None is its own."""
        return None

    @property
    def site_options(self) -> tuple[Any, ...]:
        """What the site needs to know of the options, hashable."""
        return ()

    @property
    def window(self) -> int | None:
        """How many of the latest features the forecaster uses; None is all of them."""
        return None

    @property
    def correction(self) -> float:
        """Strength of the correction of the path for a given agreement, see :class:`Path`; 0 corrects nothing."""
        return 0.0

    def history(self) -> History:
        """A new history, for one branch of one sampling loop."""
        from ..core.history import History  # imports torch, which takes seconds

        return History(self.window)

    @classmethod
    def version(cls) -> str:
        """The installed version of :attr:`package`; "" where there is none."""
        return ""

    @classmethod
    def available(cls) -> bool:
        """Whether the method can run here: the installed version of :attr:`package` has this cache."""
        return True

    def check(self) -> None:
        """Raise where the method can't be used here at all, before anything is changed."""

    def fitted(self: M, denoiser: str) -> M:
        """The method with what was calibrated for a denoiser, named as :func:`denoisers.identity` does.

        The site and its options stay.
        """
        return self

    def install(self, target: Any, models: Sequence[nn.Module]) -> None:
        """Put a cache of another package on a pipeline, or on a bare model."""

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Undo :meth:`install`; ``target`` is None where it was dropped."""

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Forget what the last generation left on the models, before the next one."""

    def begin(self, total: int) -> None:
        """Raise :class:`InvalidOptionError` where a run of ``total`` steps can't be."""

    def evaluates(self, step: int, total: int) -> bool:
        """Whether the method wants ``step`` evaluated, whatever a call of it shows."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say which steps it evaluates: write evaluates(self, step, total), or "
            "derive it from spectrum_diffusion.Method, which has a schedule"
        )

    def untouched(self, total: int) -> bool:
        """Whether a run of ``total`` steps is evaluated whole, so that the result is what it would be without."""
        return all(self.evaluates(step, total) for step in range(total))

    def needs_feature(self, step: int, total: int) -> bool:
        """Whether a later step may be skipped, so that the feature of ``step`` is worth keeping."""
        return any(not self.evaluates(later, total) for later in range(step + 1, total))

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        """K float64 weights of the features of the ``evaluated`` steps in the forecast of step ``target``."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it forecasts: write weights(self, evaluated, target, total), "
            "which returns a weight for each evaluated step"
        )

    def forecast(self, history: History, target: int, axis: Sequence[float]) -> Iterator[torch.Tensor]:
        """The feature of step ``target``, tensor by tensor, so that no second set of tensors is held.

        Args:
            history: what :meth:`history` made, with at least :attr:`min_points` features.
            target: the step.
            axis: the time of each step, in steps, (T,).
        """
        from ..core.forecast import check_weights
        from . import name_of  # the registry knows the name, and is made of subclasses of this class

        weights = self.weights_at(history.steps, target, axis)
        return history.forecast(check_weights(weights, count=len(history), method=name_of(self)))

    def weights_at(self, steps: Sequence[int], target: int, axis: Sequence[float]) -> Weights:
        """The weights of the kept ``steps``, on an axis that gives each step's time in steps, (T,)."""
        return self.weights(tuple(axis[step] for step in steps), axis[target], len(axis))

    def decider(self, total: int) -> Decider | None:
        """A new decider for a branch of a run of ``total`` steps; None where a schedule decides."""
        return None

    def sampler_steps(self, steps: int) -> int:
        """How many steps the sampler takes when ``steps`` are asked for; needs :attr:`sets_steps`."""
        return steps

    def options(self) -> dict[str, Any]:
        """The options that are set, for provenance: JSON-ready."""
        values = {option.name: getattr(self, option.name) for option in fields(self) if option.init}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class Scheduled(AnyMethod):
    """A method on a fixed schedule, which :meth:`schedule` gives.

    Attributes:
        evaluated: the evaluated steps written out.
        speedup: wanted steps / evaluations; the schedule is found when the run's number of steps is known.
    """

    evaluated: Iterable[int] | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluated is not None and self.speedup is not None:
            raise InvalidOptionError("evaluated and speedup both determine the evaluated steps: give only one of them")
        if self.evaluated is not None:
            object.__setattr__(self, "evaluated", schedule.check_evaluated(self.evaluated))
        if self.speedup is not None:
            # The upper end of the range is known when the run begins: it depends on its steps.
            self.check_number("speedup", least=1.0)

    def schedule(self, total: int) -> tuple[int, ...]:
        """The evaluated steps of a run of ``total`` steps.

        Raises:
            InvalidOptionError: there is none for this number of steps.
        """
        raise NotImplementedError

    def begin(self, total: int) -> None:
        self._steps(total)

    def evaluates(self, step: int, total: int) -> bool:
        return step in self._steps(total)[0]

    def needs_feature(self, step: int, total: int) -> bool:
        return step < self._steps(total)[1]

    def _steps(self, total: int) -> tuple[frozenset[int], int]:
        """The evaluated steps and the last skipped one; kept, because each call of a generation asks."""
        kept: dict[int, tuple[frozenset[int], int]] = self.__dict__.get("_kept_steps", {})
        if total not in kept:
            evaluated = frozenset(self.schedule(total))
            kept = {total: (evaluated, max(set(range(total)) - evaluated, default=-1))}
            object.__setattr__(self, "_kept_steps", kept)  # of one number of steps, the last that was asked for
        return kept[total]


@dataclass(frozen=True, kw_only=True)
class Method(Scheduled):
    """A method on Spectrum's adaptive schedule. A variant sets its defaults and writes :meth:`weights`.

    Attributes:
        interval: first distance N between evaluated steps.
        warmup: number W of steps evaluated at the start.
        slope: growth α of the distance; 0 is uniform.
        evaluated: the evaluated steps written out, in place of the three above.
        speedup: wanted steps / evaluations; the schedule is found when the run's number of steps is known. A ``warmup``
            given beside it is kept.
        site: where features are read and replaced: "last_block", "output" or "module".
    """

    interval: int = 2
    warmup: int = 5
    slope: float = 0.75
    speedup_warmup: int | None = field(default=None, init=False, repr=False)

    found_by_speedup: ClassVar[tuple[str, ...]] = ("interval", "slope")
    """Options that can't be given beside ``speedup``, which finds them."""

    def __new__(cls, **options: Any) -> Any:
        # Beside a speedup only a warmup that was given counts, and __init__ can't tell it from the default.
        method = super().__new__(cls)
        if options.get("speedup") is not None:
            object.__setattr__(method, "speedup_warmup", options.get("warmup"))
        return method

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_integer("interval", least=1)
        self.check_integer("warmup", least=1)
        self.check_number("slope", least=0.0)

    def schedule(self, total: int) -> tuple[int, ...]:
        if self.evaluated is not None:
            return tuple(schedule.explicit(total, self.evaluated))
        if self.speedup is not None:
            return tuple(schedule.for_speedup(total, self.speedup, self.speedup_warmup))
        return tuple(schedule.adaptive(total, self.interval, self.warmup, self.slope))

    def untouched(self, total: int) -> bool:
        # Steps or a speed-up that were asked for are no surprise.
        return self.evaluated is None and self.speedup is None and total <= self.warmup

    def options(self) -> dict[str, Any]:
        values = super().options()
        if self.evaluated is not None or self.speedup is not None:
            values = {k: v for k, v in values.items() if k not in ("interval", "warmup", "slope")}
        if self.speedup_warmup is not None:
            values["warmup"] = self.speedup_warmup
        return values


@dataclass(frozen=True, kw_only=True)
class Forecaster(Method):
    """A method whose weights depend on time.

    Attributes:
        time: the axis of the forecast: "index" of the step, its "sigma" or its "log-snr", scaled to 0 … T−1.
    """

    time: str = "index"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("time", TIMES)

    @property
    def axis(self) -> str:
        return self.time
