"""The denoisers and schedulers of a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import UnsupportedModelError
from .sites import denoisers, site_class

DENOISER_NAMES = ("transformer", "transformer_2", "unet", "prior", "decoder", "denoiser")
"""Component names of denoisers, for pipelines whose classes have no row in the table."""


def is_pipeline(target: Any) -> bool:
    return not isinstance(target, (nn.Module, type)) and hasattr(target, "components") and callable(target)


def denoisers_of(target: Any, site: str) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by component name, or the bare model itself.

    Raises:
        UnsupportedModelError: there is none, or the bare model is another component of pipelines.
    """
    if isinstance(target, nn.Module):
        _refuse_other_component(target)
        return {"model": target}
    modules: dict[str, nn.Module] = {}
    for name, value in target.components.items():
        if isinstance(value, nn.Module) and not any(value is other for other in modules.values()):
            modules[name] = value
    models = {name: module for name, module in modules.items() if denoisers.row_for(module) is not None}
    skips_root = site_class(site).skips_root
    if skips_root and not models:
        models = {name: module for name, module in modules.items() if name.removeprefix("prior_") in DENOISER_NAMES}
    if not models:
        classes = ", ".join(f"{name}: {type(module).__name__}" for name, module in modules.items()) or "none"
        known = "row in the table" if not skips_root else f"row in the table or the name {', '.join(DENOISER_NAMES)}"
        remedy = "enable the bare denoiser with handle.run(total_steps=T)" if skips_root else 'use site="output"'
        raise UnsupportedModelError(
            f"{type(target).__name__} has no denoiser with a {known} (its modules: {classes}): {remedy}, or add a row "
            "with register_denoiser(…)"
        )
    if not schedulers_of(target):
        raise UnsupportedModelError(
            f"{type(target).__name__} has no scheduler, so its steps are unknown: enable the pipelines inside it, or "
            "the bare denoiser with handle.run(total_steps=T)"
        )
    return models


def _refuse_other_component(model: nn.Module) -> None:
    """Raise for an autoencoder or a model of transformers, which are called once and not at every step."""
    if denoisers.row_for(model) is not None:
        return
    encodes = hasattr(model, "encode") and hasattr(model, "decode")
    if encodes or type(model).__module__.startswith("transformers."):
        kind = "an autoencoder" if encodes else "a model of transformers"
        raise UnsupportedModelError(
            f"{type(model).__name__} is {kind}, not a denoiser: pass the pipeline, or its denoiser, such as "
            "pipe.transformer or pipe.unet"
        )


def schedulers_of(pipe: Any) -> list[tuple[Any, str]]:
    """The schedulers of a pipeline and of the pipelines inside it, each once, as owner and attribute."""
    places: dict[int, tuple[Any, str]] = {}
    for owner in pipelines_of(pipe):
        for name, value in owner.components.items():
            if hasattr(value, "set_timesteps"):
                places.setdefault(id(value), (owner, name))
    return list(places.values())


def pipelines_of(pipe: Any) -> list[Any]:
    """The pipelines inside a combined pipeline, and the pipeline itself."""
    return [*(value for value in vars(pipe).values() if is_pipeline(value)), pipe]


def device_of(pipe: Any) -> torch.device:
    """The device on which a pipeline computes. With offload its weights are elsewhere."""
    device = getattr(pipe, "_execution_device", None) or getattr(pipe, "device", None)
    if device is None:  # diffusers asks the modules, and those of the user's own may not tell
        modules = (part for part in pipe.components.values() if isinstance(part, nn.Module))
        device = next((tensor.device for module in modules for tensor in module.parameters()), "cpu")
    return torch.device(device)
