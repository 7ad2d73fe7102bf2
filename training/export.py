"""Write a trained pipeline in half precision, with the call defaults that it was trained for."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

logger = logging.getLogger(__name__)


def load_average(model: nn.Module, folder: Path) -> None:
    """Load the averaged weights of the distilled checkpoint into `model`, or of the undistilled one."""
    path = folder / "distil.pt"
    if not path.exists():
        path = folder / "denoiser.pt"
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state["average"], strict=True):
            parameter.copy_(value)
    logger.info("weights of step %d of %s", state["step"], path.name)


def save_pipeline(pipeline: DiffusionPipeline, call_defaults: dict[str, Any], output: Path) -> None:
    """Write a folder for ``from_pretrained``, with the call defaults in it."""
    pipeline.to(torch.float16).save_pretrained(output)
    for path in sorted(output.glob("*/config.json")):
        _tidy(path)
    (output / "call_defaults.json").write_text(json.dumps(call_defaults, indent=2) + "\n", encoding="utf-8")
    for path in output.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    logger.info("%s: %.2f MB", output, size / 1e6)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            logger.info("%s: %.2f million parameters", name, sum(p.numel() for p in part.parameters()) / 1e6)


def write_prompts(prompts: list[tuple[str, str]], output: Path) -> None:
    """Write the list of prompts for a model that does not know all concepts of the list "tiny"."""
    with (output / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("prompt", "category"), *prompts])


def _tidy(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a folder of this machine
    if path.parent.name.startswith("text_encoder"):
        # transformers loads an encoder with the dtype of its configuration, diffusers loads everything else in float32.
        # Without this, a pipeline loaded without a dtype would mix both.
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
