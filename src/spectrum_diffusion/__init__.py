"""Sample from diffusion models several times faster: adaptive spectral feature forecasting for diffusers.

>>> import spectrum_diffusion                                  # doctest: +SKIP
>>> handle = spectrum_diffusion.enable(pipe)                   # doctest: +SKIP
>>> image = pipe("a red fox", num_inference_steps=50).images[0]  # doctest: +SKIP
>>> print(handle.summary())                                    # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import forecast, interop, schedule
    from .core.summary import Summary
    from .errors import ConflictError, InvalidOptionError, SpectrumError, SpectrumWarning, UnsupportedModelError
    from .handle import Handle, disable, enable
    from .loading import load_default_pipeline, load_pipeline
    from .methods import METHODS, Method, make_method, register_method
    from .sites.denoisers import DENOISERS, register_denoiser

__all__ = [
    "DENOISERS",
    "METHODS",
    "ConflictError",
    "Handle",
    "InvalidOptionError",
    "Method",
    "SpectrumError",
    "SpectrumWarning",
    "Summary",
    "UnsupportedModelError",
    "__version__",
    "disable",
    "enable",
    "forecast",
    "interop",
    "load_default_pipeline",
    "load_pipeline",
    "make_method",
    "register_denoiser",
    "register_method",
    "schedule",
]

_NAMES_OF = {
    "core.summary": ("Summary",),
    "errors": ("ConflictError", "InvalidOptionError", "SpectrumError", "SpectrumWarning", "UnsupportedModelError"),
    "handle": ("Handle", "disable", "enable"),
    "loading": ("load_default_pipeline", "load_pipeline"),
    "methods": ("METHODS", "Method", "make_method", "register_method"),
    "sites.denoisers": ("DENOISERS", "register_denoiser"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first used: torch alone takes seconds."""
    if name in _MODULE_OF:
        globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        return globals()[name]
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # the module exists, and something that it needs does not
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
