"""Your own sampling loop around a bare denoiser: name the step, and call the model as usual."""

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

import spectrum_diffusion
from spectrum_diffusion.core.run import ManualRun

OUT = Path("out/own_loop")
TOTAL = 30


def make_denoiser() -> SD3Transformer2DModel:
    """A small one with random weights, so that nothing is downloaded; yours is trained."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        out_channels=4,
    )
    return model.eval()


@torch.no_grad()
def sample(model: SD3Transformer2DModel, run: ManualRun, guidance: float = 3.0) -> torch.Tensor:
    """Euler steps from noise to latents, with two calls a step for guidance; float32 (1, 4, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    texts = {name: torch.randn(1, 8, 32, generator=generator) for name in ("cond", "uncond")}
    pooled = torch.randn(1, 32, generator=generator)
    sigmas = torch.linspace(1, 0, TOTAL + 1)
    for i in range(TOTAL):
        run.step(i)
        velocity = {}
        for name, text in texts.items():
            run.branch(name)
            velocity[name] = model(latents, text, pooled, sigmas[i : i + 1] * 1000, return_dict=False)[0]
        guided = velocity["uncond"] + guidance * (velocity["cond"] - velocity["uncond"])
        latents = latents + (sigmas[i + 1] - sigmas[i]) * guided
    return latents


def main() -> dict[str, object]:
    """Sample under a run, save the latents under ``out/own_loop``; the summary as a dictionary."""
    model = make_denoiser()
    with spectrum_diffusion.enable(model, speedup=2.5) as handle:
        with handle.run(total_steps=TOTAL) as run:
            latents = sample(model, run)
        summary = handle.summary()

    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(latents, OUT / "latents.pt")
    print(summary)
    print(f"The latents are in {OUT}")
    return summary.to_dict()


if __name__ == "__main__":
    main()
