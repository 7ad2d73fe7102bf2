"""Write the trained parts as a FluxPipeline in half precision."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from transformers import CLIPTokenizer, T5TokenizerFast

from training.flow import TinyFlux

logger = logging.getLogger(__name__)

# FLUX.1-dev's own settings.
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
CALL_DEFAULTS = {
    "num_inference_steps": 50,
    "height": 64,
    "width": 64,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}


def load_average(model: TinyFlux, folder: Path) -> None:
    """Fill `model` with the averaged weights of the distilled checkpoint, or of the undistilled one."""
    path = folder / "distil.pt"
    if not path.exists():
        path = folder / "flow.pt"
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state["average"], strict=True):
            parameter.copy_(value)
    logger.info("weights of step %d of %s", state["step"], path.name)


def save_pipeline(model: TinyFlux, vae: AutoencoderKL, clip: CLIPTokenizer, t5: T5TokenizerFast, output: Path) -> None:
    """Write the folder that ``FluxPipeline.from_pretrained`` reads, with the call defaults beside it."""
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=model.clip,
        tokenizer=clip,
        text_encoder_2=model.t5,
        tokenizer_2=t5,
        transformer=model.transformer,
    ).to(torch.float16)
    pipeline.save_pretrained(output)
    for name in ("text_encoder", "text_encoder_2"):
        _name_dtype(output / name / "config.json")
    (output / "call_defaults.json").write_text(json.dumps(CALL_DEFAULTS, indent=2) + "\n", encoding="utf-8")
    for path in output.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    logger.info("%s: %.2f MB", output, size / 1e6)


def _name_dtype(path: Path) -> None:
    # transformers loads an encoder in the type its configuration names, diffusers everything else in float32:
    # without this a pipeline loaded without a type would hold both.
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
