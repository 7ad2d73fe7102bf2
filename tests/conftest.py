"""What all tests share.

One thread a test: the models are so small that a second one only waits, and results do not depend on the machine.
"""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def own_names() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    from spectrum_diffusion import METHODS

    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
