"""What the page shows, without Gradio: two images, methods at equal cost, and the curves of one number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectrum_diffusion
from spectrum_diffusion.core.forecast import taylor_weights
from spectrum_diffusion.demo.drawings import feature
from spectrum_diffusion.demo.studio import Curves, Studio, Wish, curves, image_models, psnr
from spectrum_diffusion.errors import InvalidOptionError, UnsupportedModelError

WISH = Wish(prompt="red apple", seed=1, steps=12, speedup=2)


def ignored(step: int, label: str) -> None:
    pass


@pytest.fixture(scope="module")
def studio() -> Studio:
    def load(name: str) -> object:
        pipe = spectrum_diffusion.load_pipeline(name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    torch.set_num_threads(1)
    return Studio(load, ["tiny-flux", "tiny-wan"])


def test_both_images_start_from_the_same_noise(studio: Studio) -> None:
    reported: list[tuple[int, str]] = []
    untouched = studio.sample("tiny-flux", WISH, None, lambda *done: reported.append(done))
    pipe = studio.pipe("tiny-flux")
    image = pipe("red apple", num_inference_steps=12, generator=torch.Generator().manual_seed(1)).images[0]
    assert psnr(untouched.image, image) == float("inf")
    assert reported == [(step, "untouched") for step in range(1, 13)]
    fast = studio.sample("tiny-flux", WISH, "spectrum", ignored)
    assert fast.summary is not None
    assert fast.summary.nfe == 6
    assert 20 < psnr(fast.image, untouched.image) < float("inf")
    assert fast.seconds > 0


def test_methods_of_the_gallery_cost_about_the_same(studio: Studio) -> None:
    samples = dict(studio.gallery("tiny-flux", WISH, ignored))
    assert samples.pop("untouched").summary is None
    assert len(samples) == 6
    assert all(sample.summary is not None and 5 <= sample.summary.nfe <= 7 for sample in samples.values())


def test_a_failure_leaves_the_next_generation_as_it_was(studio: Studio) -> None:
    before = studio.sample("tiny-flux", WISH, "spectrum", ignored)

    def fails(step: int, label: str) -> None:
        if step == 5:
            raise RuntimeError("the reader left")

    with pytest.raises(RuntimeError):
        studio.sample("tiny-flux", WISH, "spectrum", fails)
    assert psnr(studio.sample("tiny-flux", WISH, "spectrum", ignored).image, before.image) == float("inf")


def test_recorded_outputs_are_those_of_every_step(studio: Studio) -> None:
    outputs = studio.outputs("tiny-flux", WISH, ignored)
    assert outputs.shape[0] == 12
    assert np.isfinite(outputs).all()
    assert not studio.pipe("tiny-flux").transformer._forward_hooks


def test_the_curves_are_forecasts_from_what_was_evaluated() -> None:
    steps = np.arange(20.0)
    outputs = np.stack([steps, 0.5 * steps, steps**2], axis=1).astype(np.float32)  # (T, N)
    drawn = curves(outputs, speedup=2, now=10, rank=0)
    assert max(drawn.known) <= 10
    assert all(
        drawn.line[step] == pytest.approx(drawn.truth[step]) for step in drawn.line
    )  # a line is foretold exactly
    assert all(drawn.damped[step] == pytest.approx(drawn.truth[step], rel=1e-3) for step in drawn.damped)
    hardest = curves(outputs, speedup=2, now=10, rank=1)
    assert hardest.truth == pytest.approx(steps**2)
    weights = taylor_weights(tuple(hardest.known), max(hardest.line), 1)
    assert hardest.line[max(hardest.line)] == pytest.approx(weights @ hardest.truth[hardest.known])


@pytest.mark.parametrize("now", [0, 5, 19])
@pytest.mark.parametrize("speedup", [1, 3.5, 100])
def test_every_position_of_the_sliders_draws(now: int, speedup: float) -> None:
    outputs = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    drawn = curves(outputs, speedup, now, 0.5)
    assert feature(drawn).count("<circle") == len(drawn.known)


def test_a_constant_number_draws() -> None:
    assert "nan" not in feature(Curves(np.zeros(8), [0, 1], {0: 0.0}, {1: 0.0}, {1: 0.0}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a" * 1001}, "shorten it"),
        ({"steps": 1}, "steps=1 is out of range"),
        ({"steps": 10**9}, "is out of range"),
        ({"speedup": 0.5}, "would add steps"),
        ({"speedup": float("nan")}, "not a number"),
    ],
)
def test_wishes_that_no_model_can_do_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        Wish(**{"prompt": "panda", "seed": 0, "steps": 8, "speedup": 2, **change}).check()  # type: ignore[arg-type]


def test_models_that_are_not_offered_are_refused(studio: Studio) -> None:
    with pytest.raises(InvalidOptionError, match="choose one of tiny-flux, tiny-wan"):
        studio.pipe("/etc")
    with pytest.raises(UnsupportedModelError, match="does not make images from text alone"):
        studio.pipe("tiny-wan")


def test_video_models_are_not_offered() -> None:
    assert {"tiny-flux", "tiny-sd3", "tiny-sdxl"} <= set(image_models())
    assert not {"tiny-wan", "tiny-hunyuan"} & set(image_models())
