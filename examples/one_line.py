"""One line before the pipeline's call: the same picture from 14 of 50 evaluations of the denoiser."""

from pathlib import Path

import torch

import spectrum_diffusion

OUT = Path("out/one_line")


def main() -> dict[str, int]:
    """Draw once untouched and once enabled, under ``out/one_line``; the evaluations of each picture."""
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    OUT.mkdir(parents=True, exist_ok=True)

    picture = pipe("red apple", generator=torch.Generator().manual_seed(0)).images[0]
    picture.save(OUT / "untouched.png")

    handle = spectrum_diffusion.enable(pipe)
    picture = pipe("red apple", generator=torch.Generator().manual_seed(0)).images[0]
    picture.save(OUT / "spectrum.png")
    summary = handle.summary()
    spectrum_diffusion.disable(pipe)

    print(summary)
    print(f"The pictures are in {OUT}")
    return {"untouched": summary.steps, "spectrum": summary.nfe}


if __name__ == "__main__":
    main()
