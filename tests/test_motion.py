"""The small models of videos: what is drawn moves as the prompt says."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from spectrum_diffusion import load_pipeline
from training import video
from training.motion import FOLLOWS, course, follows


@pytest.fixture(scope="module", params=["tiny-wan", "tiny-hunyuan"])
def pipeline(request: pytest.FixtureRequest) -> DiffusionPipeline:
    pipe = load_pipeline(request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("motion", video.MOTIONS)
def test_motion_follows_the_prompt(pipeline: DiffusionPipeline, motion: str) -> None:
    assert follows(pipeline, "heart", motion)


def test_what_stands_still_or_is_empty_follows_no_motion() -> None:
    empty = np.ones((13, 48, 48, 3))
    still = empty.copy()
    still[:, 12:36, 12:36] = (1, 0, 0)
    for frames in (empty, still):
        assert not any(right(*course(frames)) for right in FOLLOWS.values())


@pytest.mark.slow
def test_motion_follows_nearly_every_prompt(pipeline: DiffusionPipeline) -> None:
    """What the models' cards say."""
    pairs = [(thing, motion) for thing in video.CONCEPTS for motion in video.MOTIONS]
    assert sum(follows(pipeline, *pair) for pair in pairs) >= 190  # of 192
