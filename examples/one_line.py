"""One line before the pipeline's call: nearly the same image from 14 of 50 evaluations of the denoiser."""

from pathlib import Path

import torch

import spectrum_diffusion

OUT = Path("out/one_line")


def main() -> dict[str, int]:
    """Generate once untouched and once enabled, under ``out/one_line``; return the evaluations of each image."""
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    OUT.mkdir(parents=True, exist_ok=True)

    image = pipe("red apple", generator=torch.Generator().manual_seed(0)).images[0]
    image.save(OUT / "untouched.png")

    handle = spectrum_diffusion.enable(pipe)
    image = pipe("red apple", generator=torch.Generator().manual_seed(0)).images[0]
    image.save(OUT / "spectrum.png")
    summary = handle.summary()
    spectrum_diffusion.disable(pipe)

    print(summary)
    print(f"The images are in {OUT}")
    return {"untouched": summary.steps, "spectrum": summary.nfe}


if __name__ == "__main__":
    main()
