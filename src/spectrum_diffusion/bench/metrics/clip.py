"""CLIP Score: Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore, 2021, as later papers report it.

100 · max(cos(image, text), 0)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.words import first_line
from ...errors import InvalidOptionError, MissingPackageError
from .base import PictureJudge, average
from .frames import Frames, to_video

if TYPE_CHECKING:
    import torch

CLIP_MODEL = "openai/clip-vit-large-patch14"
"""The usual model; the paper does not name its own."""

PIECES, LENGTH = 64, 4096
"""Pieces read from each file of a model, and the bytes of each: other weights differ in some of them."""


@dataclass(frozen=True)
class ClipScore(PictureJudge):
    """How well an image fits its prompt. The score of a video is the mean over its frames.

    Attributes:
        model: a folder with a CLIP model, its tokenizer and image processor, or an id on the Hub.
        device: where it runs.
    """

    model: str | Path = CLIP_MODEL
    device: str = "cpu"
    name = "clip_score"
    title = "CLIP Score"
    higher_is_better = True

    @property
    def source(self) -> str:
        named = Path(self.model).name if Path(self.model).is_dir() else self.model
        return f"Hessel et al.: CLIPScore, 2021; 100 · max(cos, 0) of {named}"

    def available(self) -> str:
        """Empty if the model is on this machine, else why it is not and what to do."""
        folder = _find(str(self.model))
        lacks = _lacks(folder) if folder is not None else "nothing of it"
        if not lacks:
            return ""
        if folder == Path(self.model):
            return f"{folder} is not the folder of a CLIP model: {lacks}"
        return (
            f"the model {str(self.model)!r} is not on this machine ({lacks}): give the folder of a CLIP model, "
            f"or fetch it once with hf download {self.model}"
        )

    def fingerprint(self) -> str:
        """A digest of the model's files, from pieces of each; empty if the model is missing."""
        folder = _find(str(self.model))
        return _digest(_stated(folder)) if folder is not None else ""

    def judge(self, video: Frames, against: str) -> float:
        """:meth:`score`, under the name that all metrics share."""
        return self.score(video, against)

    def score(self, video: Frames, prompt: str) -> float:
        """The score of an image or video, 0 … 100. A prompt longer than the text encoder takes is cut.

        Args:
            video: frames as :func:`to_video` takes them, such as ``(F, 3, H, W)`` in [0, 1].
            prompt: the text that it was sampled from.

        Raises:
            InvalidOptionError: the prompt is empty, or the frames are not valid.
            MissingPackageError: the model is missing, or is not a CLIP model.
        """
        if not prompt.strip():
            raise InvalidOptionError("CLIP Score needs the prompt of the image: it is empty")
        return average(self._cosines(to_video(video), prompt).clamp(min=0).mul(100).tolist())

    def _cosines(self, video: torch.Tensor, prompt: str) -> torch.Tensor:
        import torch

        model, tokenizer, processor = self._load()
        pixels = processor(images=list((video * 255).round().byte()), return_tensors="pt")["pixel_values"]
        text = tokenizer([prompt], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(pixel_values=pixels.to(self.device), **text.to(self.device))
        return torch.cosine_similarity(output.image_embeds, output.text_embeds).double().cpu()  # (F, D), (1, D) → (F,)

    def _load(self) -> tuple[Any, Any, Any]:
        if problem := self.available():
            raise MissingPackageError(f"CLIP Score can't be computed: {problem}")
        folder = _find(str(self.model))
        assert folder is not None  # it is available
        return _load(folder, self.device, _stated(folder))


@lru_cache(maxsize=1)
def _load(folder: Path, device: str, stated: Stated) -> tuple[Any, Any, Any]:
    """Load from the folder, so that nothing is downloaded; once for each state of its files."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    try:
        clip, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):  # transformers would fill them at random, with a warning
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
        clip = clip.eval().to(device)
        return clip, AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # a broken file can fail in any way
        raise MissingPackageError(
            f"{str(folder)!r} can't be loaded as a CLIP model with tokenizer and image processor: {first_line(error)}"
        ) from error


def _find(model: str) -> Path | None:
    """The folder of a model, or its files in the cache of the Hub."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _lacks(folder: Path) -> str:
    """What a folder lacks of a CLIP model, as far as that is visible without loading it; empty if nothing."""
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            return f"no {name}"
    if (kind := _model_type(folder)) != "clip":
        return f"a model of type {kind!r}"
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return "no weights"
    return ""


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, TypeError, KeyError):  # cut off, or something else
        return "unknown"


Stated = tuple[tuple[str, int, int], ...]
"""Path, size and time of each file."""


def _stated(folder: Path) -> Stated:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@lru_cache(maxsize=4)
def _digest(stated: Stated) -> str:
    whole = hashlib.sha256()
    for name, size, _ in stated:
        whole.update(f"{Path(name).name}:{size}".encode())
        with open(name, "rb") as file:
            for piece in range(PIECES):
                file.seek(piece * size // PIECES)
                whole.update(file.read(LENGTH))
    return whole.hexdigest()
