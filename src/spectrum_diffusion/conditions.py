"""What a sampling loop runs under: a plan made under other conditions does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import InvalidOptionError

if TYPE_CHECKING:
    from .core.calls import Arguments
    from .scheduler_clock import SchedulerClock

GUIDANCE = ("guidance_scale", "true_cfg_scale", "guidance_scale_2", "guidance_rescale", "pag_scale")
"""Settings of guidance that pipelines keep as an attribute for the time of a call, after an underscore."""
OF_GUIDANCE = ("guidance", "cfg", "pag_scale")
"""What names of such arguments of a call contain; some pipelines keep none of them as an attribute."""
CLOSE = 1e-3
"""Relative difference of noise levels that count as equal."""


@dataclass(frozen=True)
class Conditions:
    """What a sampling loop runs under, JSON-ready.

    Attributes:
        scheduler: class of the scheduler.
        config: its configuration.
        levels: noise level of each step; empty where the scheduler has none.
        guidance: strengths of the guidance by name.
        latents: shape of what the denoiser is given, without the batch.
    """

    scheduler: str
    config: Mapping[str, Any]
    levels: tuple[float, ...]
    guidance: Mapping[str, float]
    latents: tuple[int, ...]

    @classmethod
    def of(cls, pipe: Any, arguments: Mapping[str, Any], clock: SchedulerClock, call: Arguments) -> Conditions:
        """The conditions of the loop that a denoiser's call begins.

        Args:
            pipe: the pipeline.
            arguments: those of its call by name, with defaults.
            clock: of the loop.
            call: the denoiser's.
        """
        config = dict(getattr(clock.scheduler, "config", {}))
        given = {name: value for name, value in arguments.items() if any(word in name for word in OF_GUIDANCE)}
        given |= {name: value for name in GUIDANCE if (value := getattr(pipe, f"_{name}", None)) is not None}
        return cls(
            clock.scheduler_name,
            {name: value for name, value in config.items() if not name.startswith("_") and _is_plain(value)},
            _levels(clock),
            {name: float(value) for name, value in given.items() if type(value) in (int, float)},
            tuple(call.first.shape[1:]),
        )

    @classmethod
    def read(cls, values: Any) -> Conditions:
        """The conditions of a plan.

        Raises:
            InvalidOptionError: they are not what :meth:`to_dict` made.
        """
        try:
            return cls(
                str(values["scheduler"]),
                dict(values["config"]),
                tuple(map(float, values["levels"])),
                {name: float(value) for name, value in values["guidance"].items()},
                tuple(map(int, values["latents"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InvalidOptionError(
                f"the plan's conditions cannot be read ({type(error).__name__}: {error}): make the plan again"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def contradictions(self, now: Conditions) -> list[str]:
        """How the conditions of now make a plan of these useless."""
        if self.scheduler != now.scheduler:
            return [f"the scheduler {self.scheduler}, but this one is {now.scheduler}"]
        differing = [name for name in self.config if name in now.config and self.config[name] != now.config[name]]
        contradictions = [
            f"{name}={self.config[name]!r} of the scheduler, not {now.config[name]!r}" for name in differing
        ]
        comparable = self.latents == now.latents and len(self.levels) == len(now.levels)
        if not contradictions and comparable and not _close(self.levels, now.levels):
            contradictions.append("other noise levels (sigmas or timesteps)")
        return contradictions

    def other_guidance(self, now: Conditions) -> list[str]:
        """Settings of guidance that differ now. Weights of single branches do not fit then; others may be worse."""
        names = self.guidance.keys() & now.guidance.keys()
        return [
            f"{name}={self.guidance[name]:g}, but this call has {now.guidance[name]:g}"
            for name in sorted(names)
            if self.guidance[name] != now.guidance[name]
        ]

    def other_size(self, now: Conditions) -> list[str]:
        """Another size of the latents, for which a plan may be worse."""
        if self.latents == now.latents:
            return []
        return [f"latents of shape {self.latents}, but these have {now.latents}"]


def _levels(clock: SchedulerClock) -> tuple[float, ...]:
    try:
        return tuple(float(f"{level:.6g}") for level in clock.sigmas())
    except InvalidOptionError:
        return ()


def _close(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= CLOSE * max(abs(a), abs(b)) for a, b in zip(first, second, strict=True))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
