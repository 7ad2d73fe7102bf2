"""Base classes of methods: schedule × forecaster × site, under a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import sites
from ..core import schedule
from ..core.words import unknown_choice
from ..errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from ..core.controller import Controller
    from ..core.decider import Decider
    from ..core.forecast import Weights
    from ..core.history import History
    from ..core.path import Path
    from ..core.schedule import Noise
    from ..core.summary import Action

SITES = tuple(sites.GENERAL)
"""The sites at which a general forecaster works."""
TIMES = ("index", "sigma", "log-snr")
SOLVERS = ("dpm++", "unipc")

M = TypeVar("M", bound="AnyMethod")


@dataclass(frozen=True, kw_only=True)
class AnyMethod:
    """What a run needs from any method. Derive from :class:`Method` for a method with a fixed schedule.

    Attributes:
        site: where features are read and replaced.
    """

    site: str = "last_block"

    sites: ClassVar[tuple[str, ...]] = SITES
    """The sites at which the method works."""
    min_points: ClassVar[int] = 1
    """Evaluated features that a branch needs before its first forecast."""
    skip: ClassVar[Action] = "forecast"
    """The action of a skipped step: "forecast", or "partial" if some of the blocks run."""
    in_place: ClassVar[bool] = False
    """Whether skipped steps update the last kept feature in place, instead of summing features with weights."""
    observes: ClassVar[bool] = False
    """Whether the cache of another package does everything, and the run only observes."""
    package: ClassVar[str] = ""
    """The package whose cache it is; "" for the methods of this library."""
    sets_steps: ClassVar[bool] = False
    """Whether :meth:`sampler_steps` changes the number of steps."""
    needs_conditions: ClassVar[bool] = False
    """Whether the handle must keep the conditions of each loop."""
    limits: ClassVar[str] = "every denoiser in the table; any other at the output"
    """On which models the method works, for lists of methods."""

    def __post_init__(self) -> None:
        self.check_choice("site", self.sites)

    def check_integer(self, name: str, *, least: int, most: int | None = None) -> None:
        """Check that an option is an integer within ``least … most``, and store it as an int."""
        object.__setattr__(self, name, schedule.check_integer(name, getattr(self, name), least=least, most=most))

    def check_number(self, name: str, *, least: float, most: float | None = None) -> None:
        """Check that an option is a finite number within ``least … most``, and store it as a float."""
        object.__setattr__(self, name, schedule.check_number(name, getattr(self, name), least=least, most=most))

    def check_numbers(self, name: str, *, least: float | None = None) -> None:
        """Check that an option is a list of finite numbers ≥ ``least``, and store it as a tuple."""
        values = getattr(self, name)
        if not schedule.is_list(values):
            raise InvalidOptionError(f"{name} must be a list of numbers, got {values!r}: pass one such as [1.0, 0.5]")
        numbers = tuple(schedule.check_number(name, value, least=least) for value in values)
        if not numbers:
            raise InvalidOptionError(f"{name}=[] is empty: pass one or more numbers")
        object.__setattr__(self, name, numbers)

    def check_choice(self, name: str, choices: Sequence[str]) -> None:
        """Check that an option is one of the choices."""
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise InvalidOptionError(unknown_choice(f"{name}={value!r}", value, choices))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their defaults, by name."""
        return {option.name: option.default for option in fields(cls) if option.init}

    @classmethod
    def knows_options(cls) -> bool:
        """Whether the names of the options are known, so that unknown ones can be refused."""
        return True

    @property
    def decides_while_running(self) -> bool:
        """Whether the evaluated steps are not known before the run, so that there may be none to skip."""
        return False

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
        """The solver that replaces the pipeline's, a name of :data:`SOLVERS`; None keeps its own."""
        return None

    @property
    def site_options(self) -> tuple[Any, ...]:
        """The options that the site needs, hashable."""
        return ()

    @property
    def window(self) -> int | None:
        """How many of the latest features the forecaster uses; None for all."""
        return None

    def history(self, guided: Path | None = None, rows: int | None = None) -> History:
        """A new history, for one branch of one sampling loop.

        Args:
            guided: the path of the guided outputs, which the scheduler is given, if it is known.
            rows: size of the batch that the denoiser is called with; None if it is called with a list of samples.
        """
        from ..core.history import History  # imports torch, which takes seconds

        return History(self.window)

    def path(self) -> Path | None:
        """A new path of what the scheduler is given in one sampling loop; None if nothing follows it."""
        return None

    @classmethod
    def version(cls) -> str:
        """The installed version of :attr:`package`, or ""."""
        return ""

    @classmethod
    def available(cls) -> bool:
        """Whether the method can run here: the installed version of :attr:`package` has this cache."""
        return True

    def check(self) -> None:
        """Raise if the method cannot run here at all, before anything changes."""

    def fitted(self: M, denoiser: str) -> M:
        """The method with the options that were calibrated for a denoiser. The site and its options stay.

        Args:
            denoiser: name of the denoiser by :func:`denoisers.identity`.
        """
        return self

    def install(self, target: Any, models: Sequence[nn.Module]) -> None:
        """Install the cache of another package on a pipeline, or on a bare model."""

    def remove(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Undo :meth:`install`; ``target`` is None if it no longer exists."""

    def reset(self, target: Any, models: Iterable[nn.Module]) -> None:
        """Discard what the last generation left on the models, before the next one."""

    def begin(self, total: int) -> None:
        """Raise :class:`InvalidOptionError` if a run cannot have ``total`` steps."""

    def paced(self: M, noise: Noise | None) -> M:
        """The method for a run with this noise; None if it is unknown."""
        return self

    def evaluates(self, step: int, total: int) -> bool:
        """Whether ``step`` is evaluated, whatever its calls show."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say which steps it evaluates: write evaluates(self, step, total), or "
            "derive it from spectrum_diffusion.Method, which has a schedule"
        )

    def untouched(self, total: int) -> bool:
        """Whether a run of ``total`` steps skips nothing, which deserves a warning."""
        return all(self.evaluates(step, total) for step in range(total))

    def needs_feature(self, step: int, total: int) -> bool:
        """Whether a later step may be skipped, so that the feature of ``step`` must be kept."""
        return any(not self.evaluates(later, total) for later in range(step + 1, total))

    def weights(self, evaluated: tuple[float, ...], target: float, total: int) -> Weights:
        """The weights of the evaluated features in a forecast, float64, (K,).

        Args:
            evaluated: times of the K evaluated steps, in steps, increasing.
            target: time of the step to forecast.
            total: number of steps T of the run.
        """
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
        """The weights of the kept ``steps``, (K,), on an axis with the time of each step, (T,)."""
        return self.weights(tuple(axis[step] for step in steps), axis[target], len(axis))

    def decider(self, total: int) -> Decider | None:
        """A new decider for a branch of a run of ``total`` steps; None if a schedule decides."""
        return None

    def controller(self, total: int) -> Controller | None:
        """A new controller that chooses the evaluated steps of a run while it runs, in place of :meth:`evaluates`.

        It chooses from :meth:`nodes`.

        Raises:
            InvalidOptionError: it cannot choose among ``total`` steps.
        """
        return None

    def nodes(self, total: int, count: int) -> Sequence[int]:
        """The schedule with ``count`` evaluations, for a method with a :meth:`controller`."""
        raise NotImplementedError

    def sampler_steps(self, steps: int) -> int:
        """How many steps the sampler takes when ``steps`` are asked for; needs :attr:`sets_steps`."""
        return steps

    def options(self) -> dict[str, Any]:
        """The options that are set, as JSON-ready values."""
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
            raise InvalidOptionError("evaluated and speedup both determine the evaluated steps: pass only one of them")
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
        """The evaluated steps and the last skipped step; cached, because each call of a generation needs them."""
        kept: dict[int, tuple[frozenset[int], int]] = self.__dict__.get("_kept_steps", {})
        if total not in kept:
            evaluated = frozenset(self.schedule(total))
            kept = {total: (evaluated, max(set(range(total)) - evaluated, default=-1))}
            object.__setattr__(self, "_kept_steps", kept)  # only for the latest number of steps
        return kept[total]


@dataclass(frozen=True, kw_only=True)
class Method(Scheduled):
    """A method on Spectrum's adaptive schedule. A variant sets its defaults and writes :meth:`weights`.

    Attributes:
        interval: first distance N between evaluated steps.
        warmup: number W of steps evaluated at the start.
        slope: growth α of the distance; 0 is uniform.
        evaluated: the evaluated steps written out, in place of ``interval``, ``warmup`` and ``slope``.
        speedup: wanted steps / evaluations; the schedule is found when the run's number of steps is known. A ``warmup``
            given beside it is kept.
    """

    interval: int = 2
    warmup: int = 5
    slope: float = 0.75
    speedup_warmup: int | None = field(default=None, init=False, repr=False)

    found_by_speedup: ClassVar[tuple[str, ...]] = ("interval", "slope")
    """Options that ``speedup`` determines, so that they cannot be passed with it."""
    given_by_evaluated: ClassVar[tuple[str, ...]] = ("interval", "warmup", "slope")
    """Options that ``evaluated`` takes the place of, so that they cannot be passed with it."""

    def __new__(cls, **options: Any) -> Any:
        # With a speedup, a warmup counts only if it was passed. __init__ cannot tell it from the default.
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
        # Explicit steps or a speed-up deserve no warning.
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
