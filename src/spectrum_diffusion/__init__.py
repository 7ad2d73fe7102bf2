"""Sample from diffusion models several times faster: adaptive spectral feature forecasting for diffusers.

>>> import spectrum_diffusion                                  # doctest: +SKIP
>>> handle = spectrum_diffusion.enable(pipe)                   # doctest: +SKIP
>>> image = pipe("a red fox", num_inference_steps=50).images[0]  # doctest: +SKIP
>>> print(handle.summary())                                    # doctest: +SKIP
"""

from . import forecast, schedule
from ._version import __version__
from .default_model import load_default_pipeline, load_pipeline
from .denoisers import DENOISERS, register_denoiser
from .errors import ConflictError, InvalidOptionError, SpectrumError, SpectrumWarning, UnsupportedModelError
from .methods import METHODS, Method, make_method, register_method
from .pipeline import Handle, disable, enable
from .summary import Summary

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
    "load_default_pipeline",
    "load_pipeline",
    "make_method",
    "register_denoiser",
    "register_method",
    "schedule",
]
