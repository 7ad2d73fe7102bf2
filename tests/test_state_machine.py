"""Enable, run, abort, change and disable in any order: what came before leaves no trace."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from pipelines import PIPELINES

import spectrum_diffusion
from spectrum_diffusion import SpectrumWarning

ENTRY = PIPELINES["sd3"]
STEPS = st.integers(1, 9)
WAYS = [
    ("spectrum", ()),
    ("spectrum", (("speedup", 1.5),)),
    ("paper", (("warmup", 2),)),
    ("paper", (("site", "output"), ("warmup", 2), ("interval", 3))),
    ("taylor", (("order", 2), ("warmup", 3))),
    ("reuse", (("warmup", 1), ("slope", 0.0))),
    ("fewer-steps", (("interval", 2), ("warmup", 2))),
]
Way = tuple[str, tuple[tuple[str, Any], ...]]


class AbortError(Exception):
    """Ends a generation at a step."""


def outcome(pipe: Any, steps: int) -> torch.Tensor | str:
    """The latents, or the message of the refusal."""
    try:
        return ENTRY.call(pipe, steps=steps)
    except spectrum_diffusion.SpectrumError as error:
        return str(error)


@cache
def expected(way: Way | None, steps: int) -> torch.Tensor | str:
    """What a pipeline gives that was built, and perhaps enabled, just now."""
    pipe = ENTRY.build()
    if way is not None:
        spectrum_diffusion.enable(pipe, way[0], **dict(way[1]))
    return outcome(pipe, steps)


class Life(RuleBasedStateMachine):
    """One pipeline and whatever is done to it."""

    @initialize()
    def build(self) -> None:
        self.pipe = ENTRY.build()
        self.way: Way | None = None

    @rule(way=st.sampled_from(WAYS))
    def enable(self, way: Way) -> None:
        spectrum_diffusion.enable(self.pipe, way[0], **dict(way[1]))
        self.way = way

    @rule()
    def enable_wrongly(self) -> None:
        with pytest.raises(spectrum_diffusion.InvalidOptionError):
            spectrum_diffusion.enable(self.pipe, interval=0)

    @rule()
    def disable(self) -> None:
        spectrum_diffusion.disable(self.pipe)
        self.way = None

    @rule(steps=STEPS)
    def run(self, steps: int) -> None:
        result, reference = outcome(self.pipe, steps), expected(self.way, steps)
        if isinstance(result, str) or isinstance(reference, str):
            assert result == reference
        else:
            assert torch.equal(result, reference)

    @rule(steps=STEPS, at=st.integers(0, 8), inside=st.booleans())
    def abort(self, steps: int, at: int, inside: bool) -> None:
        calls = [0]

        def fail(*_: Any) -> Any:
            calls[0] += 1
            if calls[0] == at + 1:
                raise AbortError

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if not inside:
                fail()
            return tensors

        hook = self.pipe.transformer.norm_out.register_forward_pre_hook(fail) if inside else None
        try:
            ENTRY.call(self.pipe, steps=steps, callback_on_step_end=callback)
        except (AbortError, spectrum_diffusion.SpectrumError):
            pass
        finally:
            if hook is not None:
                hook.remove()


def test_any_order() -> None:
    chosen = settings(
        max_examples=15,
        stateful_step_count=20,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectrumWarning)
        run_state_machine_as_test(Life, settings=chosen)
