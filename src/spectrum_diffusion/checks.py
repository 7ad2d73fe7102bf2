"""Checks that refuse a method on a model before anything changes."""

from __future__ import annotations

from torch import nn

from .errors import ConflictError, SpectrumError, UnsupportedModelError
from .interop.snapshot import is_leftover
from .methods import AnyMethod, name_of
from .sites import denoisers, site_class
from .sites.interceptor import compiled

CACHE_HOOKS = ("cache", "fbc_", "pyramid_attention_broadcast", "text_kv")
"""Parts of the names under which diffusers' ``enable_cache`` registers its hooks."""

FOREIGN_MARKERS = {
    "_is_cached": "cache-dit",
    "_cache_context_manager": "cache-dit",
    "enable_teacache": "TeaCache",
}

PARALLEL_MARKERS = ("_parallel_config", "_is_parallelized")
"""Attributes of a denoiser that several processes share, by diffusers and by cache-dit."""


def refuse_compiled(model: nn.Module, name: str, method: AnyMethod) -> None:
    """Raise if the method would have to intercept modules inside a compiled graph."""
    site = site_class(method.site)
    if site.skips_root:
        return
    if compiled(model) and not method.observes:
        way = 'site="output"' if "output" in method.sites else 'easycache, or spectrum with site="output"'
        raise UnsupportedModelError(
            f"{name} is compiled as a whole, and no block can be skipped inside one graph: use {way}, or compile its "
            "blocks with compile_repeated_blocks(fullgraph=True)"
        )
    if site.inside_blocks and any(compiled(block) for block in denoisers.main_blocks(model)):
        way = 'site="last_block"' if "last_block" in method.sites else 'spectrum, taylor or reuse at site="last_block"'
        raise UnsupportedModelError(
            f"the blocks of {name} are compiled, and no module can be skipped inside their graphs: use {way}, which "
            "skips whole blocks"
        )
    if method.observes and any(compiled(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"{name} has compiled modules, and what runs inside their graphs cannot be observed: use "
            f"{name_of(method)} on the plain model, or without this library"
        )


def refuse_parallel(model: nn.Module, name: str, method: AnyMethod) -> None:
    """Raise where several processes share the model and each would decide from its own part of the activations."""
    if not method.decides_from_content:
        return
    if any(getattr(denoisers.unwrap(model), marker, None) for marker in PARALLEL_MARKERS):
        raise UnsupportedModelError(
            f"{name} is split over several processes (enable_parallelism), and {name_of(method)} decides from the "
            "activations of each, so that one process would skip while another waits for it: use a method that "
            "decides by the step alone, such as spectrum, fora or magcache"
        )


def refuse_training(model: nn.Module, name: str) -> None:
    """Raise if the model is in training mode."""
    if model.training:
        raise SpectrumError(f"{name} ({type(model).__name__}) is in training mode: call .eval() on it first")


def refuse_conflicts(model: nn.Module, name: str) -> None:
    """Raise if something else caches or patches the model."""
    if getattr(model, "is_cache_enabled", False):
        raise ConflictError(f"{name} has a cache of diffusers enabled: call .disable_cache() on it first")
    if hooks := sorted({hook for module in model.modules() for hook in _cache_hooks(module)}):
        raise ConflictError(f"{name} has cache hooks of diffusers ({', '.join(hooks)}): remove them first")
    for marker, owner in FOREIGN_MARKERS.items():
        if marker in model.__dict__ or marker in type(model).__dict__:
            raise ConflictError(f"{name} is cached by {owner} (attribute {marker}): undo that first, or reload it")
    if patched := _patched_by(model):
        raise ConflictError(f"the forward of {name} was replaced by {patched}: undo that first, or reload the model")


def _cache_hooks(module: nn.Module) -> list[str]:
    registry = module.__dict__.get("_diffusers_hook")
    return [hook for hook in getattr(registry, "hooks", ()) if any(part in hook for part in CACHE_HOOKS)]


def _patched_by(model: nn.Module) -> str:
    """The name of a function that replaces the model's forward, or "".

    Offload hooks only wrap the original, and cache-dit leaves its copy of the original behind when it is disabled.
    """
    cls = type(model)
    own = cls.forward
    if own.__module__ not in {base.__module__ for base in cls.__mro__}:
        return f"{own.__module__}.{own.__qualname__}"
    instance = model.__dict__.get("forward")
    if instance is not None and not hasattr(instance, "__wrapped__") and not is_leftover(model, "forward"):
        return f"{getattr(instance, '__module__', '?')}.{getattr(instance, '__qualname__', instance)}"
    return ""
