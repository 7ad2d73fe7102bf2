"""Make a tiny Stable Diffusion 3 with rough trajectories: ``python -m training.tiny_rough all``.

The model cannot memorise its data: random crops of photographs, drawings and textures in random colours, whose
captions leave most of the image open.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModelWithProjection

from training import crops, debian, text
from training.crops import CropConfig, Crops
from training.denoiser import DenoiserConfig, TrainingData
from training.export import write_prompts
from training.optim import OptimConfig
from training.process import FlowMatching
from training.recipe import Config, main
from training.text import TextConfig
from training.tiny_sd3 import TinySD3, TinySD3Recipe

logger = logging.getLogger(__name__)


WINDOW = 12
"""Side of a training example, in latents."""


def windows(latents: torch.Tensor, side: int) -> torch.Tensor:
    """All squares of `side` in latents (N, C, H, W), one after another: (N, places, C, side, side)."""
    squares = latents.unfold(2, side, 1).unfold(3, side, 1)  # (N, C, rows, columns, side, side)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


class TinyRoughRecipe(TinySD3Recipe):
    """The architecture of tiny-sd3 on 48×48 pixels, other data, stronger guidance."""

    name = "tiny-rough"
    config = Config(
        vae=None,
        text=TextConfig(tokens=8),
        denoiser=DenoiserConfig(
            process=FlowMatching(shift=1.6),
            prompts=8,
            compile=False,
            optim=OptimConfig(steps=2600, batch=64, rate=2e-3, average=0.997, save_every=100),
        ),
    )
    crops = CropConfig()
    # Stable Diffusion 3's rule: the shift is proportional to the side of the latents, and 3 at 128 (1024 pixels).
    shift = 3.0 * WINDOW / 128
    call_defaults = {
        "num_inference_steps": 50,
        "height": 48,
        "width": 48,
        "guidance_scale": 7.0,
        "max_sequence_length": 8,
    }

    def __init__(self, config: Config, work_dir: Path, output: Path) -> None:
        super().__init__(config, work_dir, output)
        self.words = crops.words()

    def data(self, held_out: bool = False) -> Crops:
        """The crops for training, or those of held-out images; the first call cuts them."""
        path = self.folder / ("held-out.pt" if held_out else "pictures.pt")
        if not path.exists():
            files = [(s, file) for s in debian.SOURCES for file in debian.files(s, debian.fetch(s, self.folder))]
            parts = [
                crops.crops_of_kind([pair for pair in files if pair[0].kind == kind], self.crops, held_out)
                for kind in crops.KINDS
            ]
            whole = Crops(*(torch.cat(columns) for columns in zip(*((p.pixels, p.words) for p in parts), strict=True)))
            torch.save(vars(whole), path)
            logger.info("%d crops in %s", len(whole.pixels), path.name)
        return Crops(**torch.load(path, weights_only=True))

    def latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Raw latents of all crops, encoded in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().latents(vae, pixels)

    def vae(self) -> AutoencoderKL:
        """That of tiny-flux, with the mean and scale of these latents in its configuration."""
        model = super().vae()
        latents = self.latents(model, self.data().pixels).float()
        model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        return model

    def normalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        return super().normalised(latents.float(), vae)

    def texts(self, forms: int) -> tuple[list[str], tuple[int, ...]]:
        """`forms` captions of every combination of words."""
        rng = np.random.default_rng(self.config.denoiser.seed)
        return crops.captions(forms, rng), (*map(len, crops.DIMENSIONS), forms)

    def training_data(self) -> TrainingData:
        """Without the crops whose combination of words is reserved for the list of prompts."""
        data = super().training_data()
        seen = ~crops.is_unseen(torch.stack(data.shown, 1))
        return dataclasses.replace(data, latents=data.latents[seen], shown=tuple(part[seen] for part in data.shown))

    def with_prompts(self, latents: torch.Tensor, shown: tuple[torch.Tensor, ...]) -> TrainingData:
        """Every window of a crop counts as an image."""
        every = windows(latents, WINDOW)  # (N, places, C, 12, 12)
        repeated = tuple(part.repeat_interleave(every.shape[1]) for part in shown)
        return super().with_prompts(every.flatten(0, 1), repeated)

    def prompts(self) -> list[tuple[str, str]]:
        """Captions that no training crop has."""
        return crops.prompts(self.data().words, each=4)

    def sheet_prompts(self) -> list[str]:
        """The list of prompts."""
        return [text for text, _ in self.prompts()]

    def export(self) -> None:
        """Write the pipeline and its list of prompts."""
        super().export()
        write_prompts(self.prompts(), self.output)

    def untrained(self) -> TinySD3:
        """3.6 million parameters, none of them from another model."""
        clip, _, t5 = self.tokenizers()
        sizes = self.config.text
        transformer = self.transformer(WINDOW)
        clips = nn.ModuleList(text.make_clip(clip, sizes, CLIPTextModelWithProjection) for _ in range(2))
        return TinySD3(transformer, clips, text.make_t5(t5, sizes))


if __name__ == "__main__":
    main(TinyRoughRecipe)
