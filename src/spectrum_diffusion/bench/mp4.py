"""Videos as mp4, where imageio-ffmpeg is installed."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 16
"""Default frames per second of a video."""
INCOMPLETE = "ffmpeg wrote no complete video; the disk may be full"


def can_write() -> bool:
    """Whether imageio-ffmpeg is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def write(path: Path, frames: Sequence[Image], fps: int = FPS) -> None:
    """Write frames of equal size.

    Raises:
        OSError: the file is not complete.
    """
    # diffusers' export_to_video needs imageio on top of the extra "video", and rescales to multiples of 16.
    import imageio_ffmpeg

    options = {"fps": fps, "quality": 8, "macro_block_size": 2, "ffmpeg_log_level": "quiet"}
    try:
        writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, **options)
        writer.send(None)
        for frame in frames:
            writer.send(frame.convert("RGB").tobytes())
        writer.close()
        # The writer ignores ffmpeg's exit code: on a full disk it leaves an empty file without an error.
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except (OSError, RuntimeError) as error:
        raise OSError(errno.EIO, INCOMPLETE) from error
    if written != len(frames):
        raise OSError(errno.EIO, INCOMPLETE)
