"""Base class of the sites inside a denoiser, which consist of its modules by role.

During a call of the denoiser a *pass* answers the calls of these modules. The model's own forward runs around them.

- ``block``: a skipped step returns a stand-in with the structure, shapes and dtypes of its recorded output.
- ``module``: its output belongs to the feature; a skipped step returns the forecast.
- ``tail``: its input is the feature; a skipped step calls it with the forecast.
- ``first``: the first block of the main stack, which gives the signal of adaptive methods.
- ``embedder``: computes the time embedding, which is the signal of models without modulated norms (Wan).
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
    """A site of modules by role. All other modules run as always. A subclass defines :meth:`roles`."""

    base: Base | None = None
    """The image tokens that are subtracted, if the feature is a residual."""

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

    def skipped(self, model: nn.Module) -> list[nn.Module]:
        places = (place.module for role, place in self._places if role in ("block", "module"))
        return [module for module in places if module is not None]

    def evaluate(self, call: Arguments) -> tuple[Any, Feature, Any]:
        with self.passing(Recording(self.base)) as record:
            output = call.proceed(*call.args, **call.kwargs)
        return output, tuple(record.feature), record.structures

    def forecast(self, call: Arguments, feature: Iterable[torch.Tensor], structure: Any) -> Any:
        with self.passing(Skipping(feature, structure, self.base)):
            return call.proceed(*call.args, **call.kwargs)

    @contextmanager
    def passing(self, pass_: P) -> Iterator[P]:
        """Let a pass answer the calls of the modules, each with its method named after the role."""
        with answering([(place, partial(_answer, pass_, role)) for role, place in self._places]):
            yield pass_


def _answer(pass_: Any, role: str, call: Arguments) -> Any:
    return getattr(pass_, role)(call)
