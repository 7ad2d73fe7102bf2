"""What a client may ask for, fixed when the server starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import InvalidOptionError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest values that one request, the queue and one call of the pipeline may have.

    Attributes:
        images: images of a request (``n``).
        steps: sampling steps.
        side: pixels of each side of an image.
        prompt: characters of a prompt.
        speedup: ratio of steps to evaluated steps that a request may ask for; ``quality="low"`` is this one.
        queue: images that wait.
        batch: images in one call of the pipeline; 1 never puts two into the same call.
        seconds: from the arrival of a request to its answer.
        body: bytes of a request.

    Raises:
        InvalidOptionError: a limit is out of range, or the queue cannot hold the largest request.
    """

    images: int = 4
    steps: int = 100
    side: int = 2048
    prompt: int = 4000
    speedup: float = 5.0
    queue: int = 64
    batch: int = 4
    seconds: float = 300.0
    body: int = 1 << 20

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            least = 0 if limit.name == "seconds" else 1
            if not math.isfinite(value) or value < least or value == 0:
                raise InvalidOptionError(
                    f"the limit {limit.name}={value:g} lets no request through: pass a number ≥ 1, or leave it out"
                )
        if self.images > self.queue:
            raise InvalidOptionError(
                f"a request of {self.images} images never fits a queue of {self.queue}: pass a longer queue or fewer "
                "images"
            )
