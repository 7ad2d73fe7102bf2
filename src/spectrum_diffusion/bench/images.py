"""The image of an image-to-image call: described for records and keys, opened and resized for the call."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.signatures import call_parameters, size_factor
from ..errors import InvalidOptionError

IMAGE, SIZE = "image", ("width", "height")
"""Arguments of a call."""


def describe_image(path: Path) -> dict[str, Any]:
    """An image as a JSON-ready argument of a call. It has a digest, since results depend on what the file contains.

    Raises:
        InvalidOptionError: the file is not an image.
    """
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is not an image that Pillow reads"
        raise InvalidOptionError(
            f"--image {str(path)!r} cannot be read ({reason}): give a .png, .jpg or .webp"
        ) from error
    return {"file": str(path), "sha256": hashlib.sha256(data).hexdigest()}


def with_image(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the image opened, if there is one, and as large as the result.

    The size is the one that was asked for, else the pipeline's default, else the image's own.
    """
    described = call.get(IMAGE)
    if not isinstance(described, Mapping):
        return dict(call)
    from PIL import Image, ImageOps

    with Image.open(described["file"]) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    parameters, factor = call_parameters(pipe), size_factor(pipe)
    defaults = getattr(pipe, "_call_defaults", {})
    wanted = [call.get(name) or defaults.get(name) for name in SIZE]
    width, height = (side or max(factor, own // factor * factor) for side, own in zip(wanted, image.size, strict=True))
    sizes = {name: side for name, side in zip(SIZE, (width, height), strict=True) if name in parameters}
    others = {name: value for name, value in call.items() if name not in SIZE}
    return {**others, **sizes, IMAGE: image.resize((width, height), Image.Resampling.LANCZOS)}
