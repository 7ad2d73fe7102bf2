"""What a pipeline's call takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call by name, ``self`` among them."""
    return inspect.signature(type(pipe).__call__).parameters
