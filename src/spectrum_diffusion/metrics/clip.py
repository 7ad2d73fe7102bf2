"""CLIP Score: Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore, 2021, as later papers report it.

100 · max(cos(image, text), 0)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptionError, MissingPackageError
from .base import average
from .frames import Frames, to_video

if TYPE_CHECKING:
    import torch

CLIP_MODEL = "openai/clip-vit-large-patch14"
"""The usual one; the paper does not say which it takes."""


@dataclass(frozen=True)
class ClipScore:
    """How well a picture fits its prompt; the score of a video is the mean over its frames.

    Attributes:
        model: a folder with a CLIP model, its tokenizer and image processor, or an id on the Hub.
        device: where it runs.
    """

    model: str | Path = CLIP_MODEL
    device: str = "cpu"
    name: str = field(default="clip_score", init=False)
    title: str = field(default="CLIP Score", init=False)
    unit: str = field(default="", init=False)
    higher_is_better: bool = field(default=True, init=False)

    def available(self) -> str:
        """Empty if the model is on this machine, else why not and what to do."""
        folder = Path(self.model)
        if folder.is_dir():
            return (
                "" if (folder / "config.json").is_file() else f"{folder} is no folder of a CLIP model: no config.json"
            )
        if _is_cached(str(self.model)):
            return ""
        return (
            f"the model {str(self.model)!r} is not on this machine: give the folder of a CLIP model, "
            f"or fetch it once with hf download {self.model}"
        )

    def score(self, video: Frames, prompt: str) -> float:
        """The score of a picture or video, 0 … 100; a prompt longer than the text encoder's reach is cut.

        Args:
            video: frames as :func:`to_video` takes them, such as ``(F, 3, H, W)`` in [0, 1].
            prompt: what was asked for.

        Raises:
            InvalidOptionError: the prompt is empty, or the frames are none.
            MissingPackageError: the model is not here, or is no CLIP model.
        """
        if not prompt.strip():
            raise InvalidOptionError("CLIP Score needs the prompt of the picture: it is empty")
        return average(self._cosines(to_video(video), prompt).clamp(min=0).mul(100).tolist())

    def _cosines(self, video: torch.Tensor, prompt: str) -> torch.Tensor:
        import torch

        model, tokenizer, processor = self._load()
        pixels = processor(images=list((video * 255).round().byte()), return_tensors="pt")["pixel_values"]
        text = tokenizer([prompt], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            found = model(pixel_values=pixels.to(self.device), **text.to(self.device))
        return torch.cosine_similarity(found.image_embeds, found.text_embeds).double().cpu()  # (F, D), (1, D) → (F,)

    def _load(self) -> tuple[Any, Any, Any]:
        if problem := self.available():
            raise MissingPackageError(f"CLIP Score can't be computed: {problem}")
        return _load(str(self.model), self.device)


@lru_cache(maxsize=1)
def _load(model: str, device: str) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    try:
        clip = CLIPModel.from_pretrained(model).eval().to(device)
        return clip, AutoTokenizer.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise MissingPackageError(
            f"{model!r} can't be loaded as a CLIP model with its tokenizer and image processor: {first}"
        ) from error


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False
