"""A page for trying the library in a browser. Gradio comes with the extra ``demo``."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingPackageError


def check_packages() -> None:
    """Raise :class:`MissingPackageError` if Gradio is not installed."""
    if find_spec("gradio") is None:
        raise MissingPackageError(
            "the page needs gradio, which this environment lacks: pip install 'spectrum-diffusion[demo]'"
        )
