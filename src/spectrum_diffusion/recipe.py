"""What ``enable`` resolves once. Generations use it as long as the denoisers consist of the same modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .checks import refuse_compiled, refuse_conflicts, refuse_parallel, refuse_training
from .discovery import denoisers_of
from .methods import AnyMethod
from .plan import Plan
from .scheduler_steps import check_schedulers
from .sites import denoisers, site_class
from .sites.denoiser import Denoiser, Place
from .sites.imprint import Imprint
from .solvers import check_solver


@dataclass(frozen=True)
class Recipe:
    """A method fitted to the denoisers of a target, and its sites on them.

    Attributes:
        method: the method, with the options that were calibrated for the denoisers.
        places: name of a denoiser → the denoiser, and the method's site on it.
    """

    method: AnyMethod
    places: Mapping[str, tuple[Denoiser, Place]]

    @property
    def denoisers(self) -> list[Denoiser]:
        return [denoiser for denoiser, _ in self.places.values()]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The modules of the denoisers by name, without those that no longer exist."""
        return {name: model for name, (denoiser, _) in self.places.items() if (model := denoiser.model) is not None}

    def attach(self, user: Any) -> None:
        """Attach to the denoisers for ``user`` (a handle)."""
        for denoiser, place in self.places.values():
            denoiser.attach(user, place)

    def imprints(self) -> dict[str, Imprint]:
        """The imprints of the denoisers as they are now, by name."""
        return {name: Imprint(model) for name, model in self.models.items()}


def resolve(target: Any, method: AnyMethod, plan: Plan | None, *, cached: Sequence[nn.Module] = ()) -> Recipe:
    """Check the method against the target's denoisers and find its sites, before anything changes.

    Args:
        target: the pipeline or model.
        method: the method as it was asked for.
        plan: where its options come from.
        cached: models with the cache of another package that enable(…) itself installed.

    Raises:
        SpectrumError: the method does not work on one of the denoisers; see :func:`enable`.
    """
    if site_class(method.site).at_scheduler:
        check_schedulers(target)
    places, fitted = {}, method
    for name, model in denoisers_of(target, method.site).items():
        refuse_training(model, name)
        if all(model is not own for own in cached):
            refuse_conflicts(model, name)
        denoiser = Denoiser.of(model, name)
        places[name] = (denoiser, denoiser.resolve(method))
        refuse_compiled(model, name, method)
        refuse_parallel(model, name, method)
        identity = denoisers.identity(model)
        if plan is not None:
            plan.check(identity)
        fitted = fitted.fitted(identity)
    if method.solver is not None:
        check_solver(target, method.solver)
    return Recipe(fitted, places)
