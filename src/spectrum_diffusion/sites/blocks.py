"""Base of the sites inside the denoiser, which are made of its modules by role.

During a call a *pass* answers the calls of these modules; the model's own forward goes on around them, uncopied.

- ``block``: on a skipped step it answers with a stand-in of its recorded output's structure, shapes and dtypes.
- ``module``: its output is (a part of) the feature; on a skipped step it answers with the forecast.
- ``tail``: its input is the feature; on a skipped step it is given the forecast.
- ``first``: the first block of the main stack, at which some methods look before they decide.
- ``embedder``: makes the time embedding, at which they look where the model modulates by nothing else (Wan).
- ``layer``: a layer with weights, whose work is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.calls import Arguments
from ..core.history import Feature
from ..core.site import Site
from .interceptor import Interceptor, answering
from .passes import Base, Recording, Skipping

P = TypeVar("P")
Roles = dict[str, list[nn.Module]]
"""Role → modules, in the order in which they run."""


class BlockSite(Site):
    """A site of modules by role; embeddings, modulation and projections run as always. A site writes :meth:`roles`."""

    base: Base | None = None
    """Where the feature is a residual: from which tokens it is taken."""

    def __init__(
        self, model: nn.Module, options: tuple[Any, ...], interceptor: Callable[[nn.Module], Interceptor]
    ) -> None:
        roles = self.roles(model, *options)
        self._places = [(role, interceptor(module)) for role, modules in roles.items() for module in modules]

    def roles(self, model: nn.Module, *options: Any) -> Roles:
        """The modules of the model by role.

        Raises:
            UnsupportedModelError: the model has no such site.
        """
        raise NotImplementedError

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self.passing(Recording(self.base)) as record:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.feature), record.structures

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self.passing(Skipping(feature, structure, self.base)):
            return call.proceed(*call.args, **call.kwargs)

    @contextmanager
    def passing(self, through: P) -> Iterator[P]:
        """Let a pass answer the modules' calls, each by the method named after its role."""
        with answering([(place, partial(_answer, through, role)) for role, place in self._places]):
            yield through


def _answer(through: Any, role: str, call: Arguments) -> Any:
    return getattr(through, role)(call)
