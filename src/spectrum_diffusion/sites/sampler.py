"""The sampler site: what the scheduler is given."""

from __future__ import annotations

from typing import Any

from ..core.calls import Arguments
from ..core.history import Feature
from ..core.site import Site


class Sampler(Site):
    """Not a place in the denoiser: a :class:`SamplerRun` answers its calls and the scheduler's steps."""

    name = "sampler"
    keeps = "what the scheduler is given"
    skips_root = True
    at_scheduler = True

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        return call.proceed(*call.args, **call.kwargs), (), None
