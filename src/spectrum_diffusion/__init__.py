"""Sample from diffusion models several times faster: adaptive spectral feature forecasting for diffusers.

>>> import spectrum_diffusion                                  # doctest: +SKIP
>>> handle = spectrum_diffusion.enable(pipe)                   # doctest: +SKIP
>>> image = pipe("a red fox", num_inference_steps=50).images[0]  # doctest: +SKIP
>>> print(handle.summary())                                    # doctest: +SKIP
"""

from . import forecast, interop, schedule
from ._version import __version__
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
