"""What a method is: schedule × forecaster × site, under a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .. import schedule
from ..errors import InvalidOptionError
from ..forecast import Weights

SITES = ("last_block", "output")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method on a fixed schedule. A variant sets its defaults and writes :meth:`weights`.

    Attributes:
        interval: first distance N between evaluated steps.
        warmup: number W of steps evaluated at the start.
        slope: growth α of the distance; 0 is uniform.
        evaluated: the evaluated steps written out, in place of the three above.
        speedup: wanted steps / evaluations; the schedule is found when the run's number of steps is known.
        site: where features are read and replaced, "last_block" or "output".
    """

    interval: int = 2
    warmup: int = 5
    slope: float = 0.75
    evaluated: Iterable[int] | None = None
    speedup: float | None = None
    site: str = "last_block"

    min_points: ClassVar[int] = 1
    """Evaluated features that a branch needs before its first forecast."""

    def __post_init__(self) -> None:
        self.check_integer("interval", least=1)
        self.check_integer("warmup", least=1)
        self.check_number("slope", least=0.0)
        if self.site not in SITES:
            raise InvalidOptionError(f"site={self.site!r} is unknown: choose one of {', '.join(SITES)}")
        if self.evaluated is not None and self.speedup is not None:
            raise InvalidOptionError("evaluated and speedup both say which steps are evaluated: give one of them")
        if self.evaluated is not None:
            object.__setattr__(self, "evaluated", schedule.check_evaluated(self.evaluated))
        if self.speedup is not None:
            # The upper end of the range is known when the run begins: it depends on its steps.
            self.check_number("speedup", least=1.0)

    def check_integer(self, name: str, *, least: int) -> None:
        """Refuse an option that is no integer ≥ ``least``; keep it as a plain int."""
        object.__setattr__(self, name, schedule.check_integer(name, getattr(self, name), least=least))

    def check_number(self, name: str, *, least: float, most: float | None = None) -> None:
        """Refuse an option that is no finite number within ``least … most``; keep it as a plain float."""
        object.__setattr__(self, name, schedule.check_number(name, getattr(self, name), least=least, most=most))

    @property
    def window(self) -> int | None:
        """How many of the latest features the forecaster uses; None is all of them."""
        return None

    def schedule(self, total: int) -> tuple[int, ...]:
        """The evaluated steps of a run of ``total`` steps."""
        if self.evaluated is not None:
            return tuple(schedule.explicit(total, self.evaluated))
        if self.speedup is not None:
            return tuple(schedule.for_speedup(total, self.speedup))
        return tuple(schedule.adaptive(total, self.interval, self.warmup, self.slope))

    def evaluates(self, step: int, total: int) -> bool:
        """Whether the method wants ``step`` evaluated."""
        return step in self.schedule(total)

    def needs_feature(self, step: int, total: int) -> bool:
        """Whether a later step is forecast, so that the feature of ``step`` is worth keeping."""
        return step < max(set(range(total)) - set(self.schedule(total)), default=-1)

    def weights(self, evaluated: tuple[int, ...], target: int, total: int) -> Weights:
        """K float64 weights of the features of the ``evaluated`` steps in the forecast of step ``target``."""
        raise NotImplementedError

    def sampler_steps(self, steps: int) -> int:
        """How many steps the sampler is to take when ``steps`` are asked for."""
        return steps

    def options(self) -> dict[str, Any]:
        """The options that are set, for provenance: JSON-ready."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.evaluated is not None or self.speedup is not None:
            values = {k: v for k, v in values.items() if k not in ("interval", "warmup", "slope")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
