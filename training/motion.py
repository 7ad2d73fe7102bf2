"""Check that videos move as their prompts say, every object in every motion: ``python -m training.motion tiny-wan``."""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline

from spectrum_diffusion import load_pipeline
from training import video

INK = 0.3
"""A pixel belongs to the object if the sum of its channels is this far from white."""
Course = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Position of the object's centre from the left and from the top in pixels, and its area, for each frame; and the share
of the ink that changes from one frame to the next."""

# For each motion, whether a course shows it, in pixels of 48×48.
FOLLOWS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], bool]] = {
    "moving left": lambda x, y, area, change: x[-1] - x[0] < -10,
    "moving right": lambda x, y, area, change: x[-1] - x[0] > 10,
    "moving up": lambda x, y, area, change: y[-1] - y[0] < -10,
    "moving down": lambda x, y, area, change: y[-1] - y[0] > 10,
    "spinning": lambda x, y, area, change: (  # it stays in place but changes
        max(abs(x[-1] - x[0]), abs(y[-1] - y[0])) < 9
        and np.ptp(y) < 12
        and 0.5 < area[-1] / area[0] < 2
        and min(area) > 100
        and change > 0.08
    ),
    "bouncing": lambda x, y, area, change: np.ptp(y) > 10 and abs(y[-1] - y[0]) < 8,
    "growing": lambda x, y, area, change: area[-1] > 2.5 * area[0],
    "shrinking": lambda x, y, area, change: area[-1] < 0.4 * area[0],
}


def course(frames: np.ndarray) -> Course:
    """The course of the object on white in `frames` (F, H, W, 3), 0 to 1."""
    ink = (1 - frames).sum(-1)
    ink = np.where(ink > INK, ink, 0)
    whole = ink.sum((1, 2)) + 1e-6
    x = (ink.sum(1) * np.arange(ink.shape[2])).sum(1) / whole
    y = (ink.sum(2) * np.arange(ink.shape[1])).sum(1) / whole
    change = float(np.abs(np.diff(frames, axis=0)).sum() / ((1 - frames)[1:].sum() + 1e-6))
    return x, y, np.maximum((ink > 0).sum((1, 2)), 1), change


def follows(pipeline: DiffusionPipeline, name: str, motion: str) -> bool:
    """Whether a video of 20 steps with seed 0 shows the motion of its prompt."""
    call = {"num_inference_steps": 20, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    return bool(FOLLOWS[motion](*course(pipeline(f"{name} {motion}", **call).frames[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name or folder of a small video model")
    pipeline = load_pipeline(parser.parse_args().model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    right = 0
    for motion in video.MOTIONS:
        wrong = [name for name in video.CONCEPTS if not follows(pipeline, name, motion)]
        right += len(video.CONCEPTS) - len(wrong)
        print(f"{motion}: {len(video.CONCEPTS) - len(wrong)} of {len(video.CONCEPTS)}", *wrong, sep=", ", flush=True)
    print(f"{right} of {len(video.MOTIONS) * len(video.CONCEPTS)}")


if __name__ == "__main__":
    main()
