"""Base classes of metrics, and the class of those that compare with a reference."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from ...core.words import first_line
from ...errors import InvalidOptionError, MissingPackageError
from .frames import Frames, to_video

if TYPE_CHECKING:
    import torch


Against = Literal["reference", "prompt"]


class Judge:
    """What all metrics share: of one image or of many together, computed here or by another program.

    Attributes:
        name: how it is requested.
        title: how tables name it.
        unit: of its values, such as "dB"; empty if they have none.
        against: what an image is compared with. A metric that needs no reference is computed for the reference too.
        whole: whether it judges all images of a method together, so that a single one has no value.
    """

    name: str
    title: str
    higher_is_better: bool
    unit: str = ""
    against: Against = "prompt"
    whole: bool = False

    @property
    def source(self) -> str:
        """Where it is published, and what it runs with."""
        raise NotImplementedError

    @property
    def module(self) -> str:
        """Where its code is. Together with :meth:`fingerprint` it tells whether a kept value is up to date."""
        return type(self).__module__

    def fingerprint(self) -> str:
        """What its values depend on besides its code, the images and what they are compared with."""
        raise NotImplementedError

    def available(self) -> str:
        """Empty if it can be computed here, else why not and what to do."""
        raise NotImplementedError


class PictureJudge(Judge):
    """A metric that is computed here, of one image or video at a time."""

    def judge(self, video: Frames, against: Any) -> float:
        """The value of an image or video, compared with its reference or its prompt."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Metric(PictureJudge):
    """Similarity of an image or video to its reference.

    Attributes:
        name: its key in ``METRICS``.
        score: of videos ``(F, 3, H, W)`` in [0, 1], in float64: a value for each frame ``(F,)``, or one for the
            video ``(1,)`` where a metric looks at motion.
        needs: checks, each of which returns "" or why the metric is not available and what to do.
        smallest: the smallest height and width for which it is defined, in pixels.
        source: where it is published.
    """

    name: str
    title: str
    unit: str = ""
    higher_is_better: bool
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    needs: tuple[Callable[[], str], ...] = ()
    smallest: int = 1
    source: str = field(default="", repr=False)
    against: Against = field(default="reference", init=False)

    @property
    def module(self) -> str:
        return self.score.__module__

    def fingerprint(self) -> str:
        """The version of torchmetrics, which most of them are from."""
        try:
            return f"torchmetrics {metadata.version('torchmetrics')}"
        except metadata.PackageNotFoundError:
            return ""

    def available(self) -> str:
        """Empty if the metric can be computed here, else why not and what to do."""
        return next((problem for check in self.needs if (problem := check())), "")

    def judge(self, video: Frames, against: Frames) -> float:
        """:meth:`compare`, under the name that all metrics share."""
        return self.compare(video, against)

    def compare(self, video: Frames, reference: Frames) -> float:
        """The metric of a video against its reference, averaged over the frames by :func:`average`.

        Args:
            video: frames as :func:`to_video` takes them, such as ``(F, 3, H, W)`` in [0, 1]; an image is one frame.
            reference: the same number of frames of the same size.

        Raises:
            InvalidOptionError: the shapes differ, a value is NaN or out of range, or the frames are too small.
            MissingPackageError: a package or weights that the metric needs are missing.
        """
        a, b = to_video(video), to_video(reference)
        if a.shape != b.shape:
            raise InvalidOptionError(
                f"the video has {_shape(a)}, its reference {_shape(b)}: {self.title} needs the same of both"
            )
        if min(a.shape[-2:]) < self.smallest:
            raise InvalidOptionError(
                f"{self.title} needs {self.smallest}x{self.smallest} pixels or more, these frames have "
                f"{a.shape[-1]}x{a.shape[-2]}: use another metric, or larger images"
            )
        if problem := self.available():
            raise MissingPackageError(f"{self.title} can't be computed: {problem}")
        return average(self.score(a, b).tolist())


def average(values: Iterable[float]) -> float:
    """The mean of the finite values; infinite if all are, as the PSNR of identical images is.

    One identical frame, or one prompt that a method leaves untouched, would make the mean PSNR of all others infinite.
    It is left out, which lowers the mean, so that no method looks better than it is.
    """
    known = list(values)
    finite = [value for value in known if math.isfinite(value)]
    if finite:
        return statistics.fmean(finite)
    return known[0] if known else math.nan


def package(module: str, install: str) -> Callable[[], str]:
    """A check that a module can be imported. It distinguishes a broken build from a missing one."""

    def check() -> str:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            return f"the package {(error.name or module).split('.')[0]} is not installed: {install}"
        except Exception as error:  # a broken build can fail in any way: missing libraries, wrong operators …
            return (
                f"{module} is installed but can't be imported ({type(error).__name__}: {first_line(error)}): {install}"
            )
        return ""

    return check


def _shape(video: torch.Tensor) -> str:
    frames, _, height, width = video.shape
    return f"{frames} frame{'s' * (frames != 1)} of {width}x{height}"
