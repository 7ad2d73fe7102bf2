"""Make the tiny FLUX that ships: ``python -m training.tiny_flux all``.

Each stage leaves its result in the work folder; run again, it is skipped or goes on from its checkpoint.
"""

import argparse
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer, T5TokenizerFast

from training import concepts, dataset, emoji, text
from training.dataset import VariantConfig
from training.export import load_average, save_pipeline
from training.flow import (
    DistilConfig,
    FlowConfig,
    FlowData,
    Prompts,
    TinyFlux,
    all_prompts,
    distil_guidance,
    make_transformer,
    pack,
    tokenize,
    train_flow,
)
from training.sheet import draw_sheet
from training.text import TextConfig
from training.vae import VaeConfig, encode_all, psnr, train_vae

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "src" / "spectrum_diffusion" / "assets" / "tiny-flux"
WORK_DIR = ROOT / "build" / "tiny-flux"
STAGES = ("data", "vae", "flow", "distil", "export", "sheet")


@dataclass(frozen=True)
class Config:
    """All settings of all stages; a stage's seed lies in its own part."""

    variants: VariantConfig = field(default_factory=VariantConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)


class Recipe:
    """The stages in their order; each asks for what the stages before it made."""

    def __init__(self, config: Config, work_dir: Path, output: Path) -> None:
        self.config, self.folder, self.output = config, work_dir, output
        self.concepts = concepts.read_concepts()
        self.subjects = concepts.subjects(self.concepts)
        work_dir.mkdir(parents=True, exist_ok=True)

    def data(self) -> dataset.Pictures:
        """Draw all pictures, once."""
        path = self.folder / "pictures.pt"
        if path.exists():
            return dataset.Pictures(**torch.load(path, weights_only=True))
        source = emoji.fetch(self.folder)
        originals = emoji.read_pictures(source, [concept.emoji for concept in self.concepts])
        pictures = dataset.draw_all(self.subjects, originals, self.config.variants)
        torch.save(dataclasses.asdict(pictures), path)
        logger.info("%d pictures of %d subjects", len(pictures.pixels), len(self.subjects))
        return pictures

    def vae(self) -> AutoencoderKL:
        """Train the autoencoder, and note the mean and scale of its latents in its configuration."""
        pixels = self.data().pixels
        model = train_vae(pixels, self.config.vae, self.folder)
        latents = self._latents(model, pixels)
        model.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        logger.info("reconstruction: %.2f dB", psnr(model, pixels[::97]))
        return model

    def _latents(self, model: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
        path = self.folder / "latents.pt"
        if not path.exists():
            torch.save(encode_all(model, pixels), path)
        return torch.load(path, weights_only=True)

    def flow(self) -> TinyFlux:
        """Train the transformer and the text encoders by flow matching."""
        model = self._untrained()
        train_flow(model, self._flow_data(), self.config.flow, self.folder)
        return model

    def distil(self) -> TinyFlux:
        """Teach the guidance scale."""
        model = self.flow()
        distil_guidance(model, self._flow_data(), self.config.flow, self.config.distil, self.folder)
        return model

    def export(self) -> None:
        """Write the pipeline in half precision, with what the newest checkpoint holds."""
        model = self._untrained()
        load_average(model, self.folder)
        clip, t5 = self.tokenizers()
        save_pipeline(model, self.vae(), clip, t5, self.output)

    def sheet(self) -> None:
        """Draw the contact sheet with the exported pipeline."""
        draw_sheet(self.output, self.folder)

    def tokenizers(self) -> tuple[CLIPTokenizer, T5TokenizerFast]:
        """Both tokenizers; they need no training beyond the list of words."""
        words, tokens = concepts.words(self.concepts), self.config.text.tokens
        return text.make_clip_tokenizer(words, tokens), text.make_t5_tokenizer(words, tokens)

    def _untrained(self) -> TinyFlux:
        torch.manual_seed(self.config.flow.seed)
        clip, t5 = self.tokenizers()
        sizes = self.config.text
        channels = 4 * self.config.vae.latent_channels
        transformer = make_transformer(channels, sizes.t5_width, sizes.clip_width, self.config.flow)
        return TinyFlux(transformer, text.make_clip(clip, sizes), text.make_t5(t5, sizes))

    def _flow_data(self) -> FlowData:
        pictures, model = self.data(), self.vae()
        latents = self._latents(model, pictures.pixels)
        latents = pack((latents - model.config.shift_factor) * model.config.scaling_factor)
        clip, t5 = self.tokenizers()

        def tokenizer(texts: list[str]) -> Prompts:
            return tokenize(texts, clip, t5, self.config.text.tokens)

        prompts = all_prompts(self.subjects, self.config.flow.prompts, tokenizer, self.config.flow.seed)
        silence = tokenizer([""])
        empty = Prompts(silence.clip[0], silence.t5[0])
        return FlowData(latents, pictures.subject, pictures.background, prompts, empty)


def _with_steps(config: Config, steps: dict[str, int | None]) -> Config:
    for name, count in steps.items():
        if count is not None:
            part = getattr(config, name)
            optim = dataclasses.replace(part.optim, steps=count)
            config = dataclasses.replace(config, **{name: dataclasses.replace(part, optim=optim)})
    return config


def main() -> None:
    """Read the command line and run the stages asked for."""
    parser = argparse.ArgumentParser(description="Make the tiny FLUX that ships.")
    parser.add_argument("stage", choices=("all", *STAGES))
    parser.add_argument("--work-dir", type=Path, default=WORK_DIR, help="checkpoints go here")
    parser.add_argument("--output", type=Path, default=ASSET, help="the exported pipeline goes here")
    parser.add_argument("--threads", type=int, default=2)
    for name in ("vae", "flow", "distil"):
        parser.add_argument(f"--{name}-steps", type=int, help="steps of this stage, in place of the recipe's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    steps = {name: getattr(args, f"{name}_steps") for name in ("vae", "flow", "distil")}
    recipe = Recipe(_with_steps(Config(), steps), args.work_dir, args.output)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        getattr(recipe, stage)()


if __name__ == "__main__":
    main()
