"""Makes the files of a job's items, one after the other, in the process that holds the pipeline."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass

from ...atomic import StoreError
from ...core.words import first_line
from ..evaluate.request import Case
from ..evaluate.sampling import Sample, sample
from ..prompts import Prompt
from .plan import Item, Job

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Times that a generation is tried before its item counts as failed."""
NOT_FINITE = "invalid value encountered in cast"
"""NumPy's warning where numbers that are not finite become pixels."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        reason: why there is no file; "" if there is one.
        detail: the error's message.
        seconds: of the pipeline.
        existed: whether another process had made the file.
    """

    file: str
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    steps: int = 0
    nfe: int = 0
    existed: bool = False


class Generator:
    """A pipeline at work on a job. After a file that could not be written it generates nothing more."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipe = job.load()
        self.stopped: Outcome | None = None

    def __call__(self, item: Item) -> Outcome:
        """Make the file of an item, unless it exists. Failures are outcomes."""
        path = self._job.folder / item.file
        if path.exists():  # of an execution that was repeated
            return Outcome(item.file, existed=True)
        if self.stopped is not None:
            return Outcome(item.file, self.stopped.reason, self.stopped.detail)
        for attempt in range(ATTEMPTS):
            try:
                return self._make(item)
            except StoreError as error:
                self.stopped = Outcome(item.file, "not written", str(error))
                return self.stopped
            except Exception as error:  # a pipeline fails in any way, and the other items go on
                log.info("%s failed, attempt %d: %s", item.file, attempt + 1, error)
                failure = Outcome(item.file, _reason(error), first_line(error))
        return failure

    def _make(self, item: Item) -> Outcome:
        begin = time.monotonic()
        generated = self._sample(item)
        self._job.save(self._job.folder / item.file, generated.frames, self._job.provenance(item, generated))
        return Outcome(item.file, seconds=time.monotonic() - begin, steps=generated.steps, nfe=generated.nfe)

    def _sample(self, item: Item) -> Sample:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", NOT_FINITE, RuntimeWarning)
            return sample(self._pipe, Case(Prompt(item.prompt), item.seed), self._job.call, self._job.row)


def _reason(error: Exception) -> str:
    return "not finite" if NOT_FINITE in str(error) else type(error).__name__
