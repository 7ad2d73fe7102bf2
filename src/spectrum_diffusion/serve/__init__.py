"""An HTTP server for a pipeline or replicas of it, with the images endpoint of OpenAI's API.

Requests enter a bounded queue. A thread for each replica takes them out, groups those that may share a call, and runs
the pipeline, here or in an actor of a Ray cluster. FastAPI, uvicorn and prometheus-client come with the extra
``serve``.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingPackageError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def check_packages() -> None:
    """Raise :class:`MissingPackageError` if a package of the extra ``serve`` is not installed."""
    if missing := [name.replace("_", "-") for name in PACKAGES if find_spec(name) is None]:
        raise MissingPackageError(
            f"the server needs {', '.join(missing)}, which this environment lacks: "
            "pip install 'spectrum-diffusion[serve]'"
        )
