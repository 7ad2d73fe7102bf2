"""The training stages of every small model, and their command line.

Each stage leaves its result in the work folder. Run again, it is skipped or continues from its checkpoint.
"""

import argparse
import dataclasses
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn

from training import concepts, dataset, emoji
from training.dataset import VariantConfig
from training.denoiser import DenoiserConfig, DistilConfig, Prompts, TrainingData, distil_guidance, train_denoiser
from training.export import load_average, save_pipeline, write_prompts
from training.optim import OptimConfig
from training.sheet import PROMPTS_FILE, draw_sheet
from training.text import TextConfig
from training.vae import VaeConfig, encode_all, make_vae, psnr, train_vae
from training.video import VideoConfig

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
TINY_FLUX = ROOT / "src" / "spectrum_diffusion" / "assets" / "tiny-flux"
STAGES = ("data", "vae", "denoiser", "distil", "export", "sheet")
TRAINED = ("vae", "denoiser", "distil")


@dataclass(frozen=True)
class Config:
    """All settings of all stages; each stage has its own seed.

    Attributes:
        concepts: names of the concepts to draw; empty for all.
        vae: None for a model that reuses the autoencoder of tiny-flux.
        distil: None for a model whose guidance takes two predictions per step.
    """

    concepts: tuple[str, ...] = ()
    variants: VariantConfig = field(default_factory=VariantConfig)
    videos: VideoConfig = field(default_factory=VideoConfig)
    vae: VaeConfig | None = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    distil: DistilConfig | None = None


class Recipe(ABC):
    """The stages in order; each calls the stages that it depends on.

    A model implements `untrained`, `tokenizers` and `pipeline`, and `normalised` if it differs.
    """

    name: ClassVar[str]
    call_defaults: ClassVar[dict[str, Any]]
    config: Config = Config()

    def __init__(self, config: Config, work_dir: Path, output: Path) -> None:
        self.config, self.folder, self.output = config, work_dir, output
        known = concepts.read_concepts()
        self.words = concepts.words(known)  # of all concepts, so that encoders fit the tokenizers of another model
        self.concepts = concepts.choose(known, config.concepts)
        self.subjects = concepts.subjects(self.concepts)
        work_dir.mkdir(parents=True, exist_ok=True)

    @classmethod
    def folder_of_model(cls) -> Path:
        """The default folder of the exported pipeline."""
        return ROOT / "models" / cls.name

    @abstractmethod
    def untrained(self) -> nn.Module:
        """The denoiser with its text encoders, called as `training.denoiser` describes."""

    @abstractmethod
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizers, in the order of the pipeline; they need no training."""

    @abstractmethod
    def pipeline(self, model: nn.Module, vae: nn.Module) -> DiffusionPipeline:
        """The pipeline with the trained parts."""

    def normalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        """Latents as the denoiser expects them."""
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    def data(self) -> dataset.Images:
        """Draw all images, once."""
        path = self.folder / "pictures.pt"
        if path.exists():
            return dataset.Images(**torch.load(path, weights_only=True))
        source = emoji.fetch(self.folder)
        originals = emoji.read_pictures(source, [concept.emoji for concept in self.concepts])
        images = dataset.draw_all(self.subjects, originals, self.config.variants)
        torch.save(dataclasses.asdict(images), path)
        logger.info("%d images of %d subjects", len(images.pixels), len(self.subjects))
        return images

    def vae(self) -> AutoencoderKL:
        """Train the autoencoder, and store the mean and scale of its latents in its configuration."""
        if self.config.vae is None:
            return AutoencoderKL.from_pretrained(TINY_FLUX / "vae").eval()
        pixels = self.data().pixels
        model = train_vae(make_vae, pixels, self.config.vae, self.folder)
        latents = self.latents(model, pixels)
        model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        logger.info("reconstruction: %.2f dB", psnr(model, pixels[::97]))
        return model

    def latents(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """The latents of all images, as the autoencoder returns them."""
        path = self.folder / "latents.pt"
        if not path.exists():
            torch.save(encode_all(vae, pixels), path)
        return torch.load(path, weights_only=True)

    def denoiser(self) -> nn.Module:
        """Train the denoiser and the text encoders."""
        model = self._seeded()
        train_denoiser(model, self.training_data(), self.config.denoiser, self.folder)
        return model

    def distil(self) -> nn.Module:
        """Distil guidance, if the model has a guidance embedding."""
        model = self.denoiser()
        if self.config.distil is not None:
            distil_guidance(model, self.training_data(), self.config.denoiser, self.config.distil, self.folder)
        return model

    def export(self) -> None:
        """Write the pipeline in half precision, with the weights of the newest checkpoint."""
        model = self._seeded()
        load_average(model, self.folder)
        save_pipeline(self.pipeline(model, self.vae()), self.call_defaults, self.output)
        if self.config.concepts:
            write_prompts(self.prompts(), self.output)

    def prompts(self) -> list[tuple[str, str]]:
        """Prompts with categories, for a model that does not know all concepts of the list "tiny"."""
        grounds = list(concepts.BACKGROUNDS)
        return [
            (f"{concept.name} on {grounds[place % len(grounds)]}" if place % 2 else concept.name, "thing")
            for place, concept in enumerate(self.concepts)
        ]

    def sheet(self) -> None:
        """Draw the contact sheet with the exported pipeline."""
        draw_sheet(self.output, self.folder, self.sheet_prompts())

    def sheet_prompts(self) -> list[str]:
        """The prompts of the contact sheet that name a concept of this model."""
        names = tuple(name for concept in self.concepts for name in (concept.name, concept.also) if name)
        lines = PROMPTS_FILE.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if f" {line.partition(' on ')[0]}".endswith(tuple(f" {n}" for n in names))]

    def texts(self, forms: int) -> tuple[list[str], tuple[int, ...]]:
        """`forms` seeded prompts for each combination of subject and background, and the dimensions of this table."""
        rng = np.random.default_rng(self.config.denoiser.seed)
        texts = [
            concepts.prompt(subject, name, rng)
            for subject in self.subjects
            for name in concepts.BACKGROUNDS
            for _ in range(forms)
        ]
        return texts, (len(self.subjects), len(concepts.BACKGROUNDS), forms)

    def tokenize(self, texts: list[str]) -> Prompts:
        """Token ids of `texts` (…, tokens), truncated and padded as in the pipeline."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return tuple(tokenizer(texts, **options).input_ids for tokenizer in self.tokenizers())

    def training_data(self) -> TrainingData:
        """Latents and prompts, as the denoiser expects them."""
        data, vae = self.data(), self.vae()
        return self.with_prompts(self.normalised(self.latents(vae, data.pixels), vae), data.shown)

    def with_prompts(self, latents: torch.Tensor, shown: tuple[torch.Tensor, ...]) -> TrainingData:
        """Normalised latents with the prompts for what they show."""
        texts, dimensions = self.texts(self.config.denoiser.prompts)
        prompts = tuple(tokens.view(*dimensions, -1) for tokens in self.tokenize(texts))
        empty = tuple(tokens[0] for tokens in self.tokenize([""]))
        return TrainingData(latents, shown, prompts, empty)

    def _seeded(self) -> nn.Module:
        torch.manual_seed(self.config.denoiser.seed)
        return self.untrained()


def with_steps(config: Config, steps: dict[str, int | None]) -> Config:
    """`config` with the given numbers of training steps."""
    for name, count in steps.items():
        part = getattr(config, name)
        if count is not None and part is not None:
            optim: OptimConfig = dataclasses.replace(part.optim, steps=count)
            config = dataclasses.replace(config, **{name: dataclasses.replace(part, optim=optim)})
    return config


def main(recipe: type[Recipe]) -> None:
    """Parse the command line and run its stages."""
    parser = argparse.ArgumentParser(description=f"Train {recipe.name}.")
    parser.add_argument("stage", choices=("all", *STAGES))
    work_dir, output = ROOT / "build" / recipe.name, recipe.folder_of_model()
    parser.add_argument("--work-dir", type=Path, default=work_dir, help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=output, help="folder of the exported pipeline")
    parser.add_argument("--threads", type=int, default=2)
    for name in TRAINED:
        parser.add_argument(f"--{name}-steps", type=int, help="number of steps of this stage; default: the recipe's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    steps = {name: getattr(args, f"{name}_steps") for name in TRAINED}
    instance = recipe(with_steps(recipe.config, steps), args.work_dir, args.output)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        getattr(instance, stage)()
