"""Each metric against hand-made values, NumPy written by hand, or another implementation; and what it refuses."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import PIPELINES
from tiny_clip import APPLE, DOG, RED, save_tiny_clip

from spectrum_diffusion.bench import metrics
from spectrum_diffusion.bench.metrics import METRICS, ClipScore, LatentPath, average, latent_rmse, to_video
from spectrum_diffusion.bench.metrics import lpips as lpips_module
from spectrum_diffusion.errors import InvalidOptionError, MissingPackageError

HERE = [name for name, metric in METRICS.items() if not metric.available()]
SIZE = 192  # large enough for every metric


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def constant(value: float, frames: int = 1, size: int = SIZE) -> torch.Tensor:
    return torch.full((frames, 3, size, size), value)


def test_dev_extra_has_the_metrics_that_need_no_weights() -> None:
    assert {"psnr", "ssim", "ms_ssim", "flip", "ssimulacra2"} <= set(HERE)


# --- every metric that is here ---


@pytest.mark.parametrize("name", HERE)
def test_identical_pictures_have_the_best_value(name: str) -> None:
    best = {"psnr": math.inf, "ssimulacra2": 100, "flip": 0, "lpips": 0, "cvvdp": 10}
    picture = noise(1, 3, SIZE, SIZE)
    assert METRICS[name].compare(picture, picture) == pytest.approx(best.get(name, 1))


@pytest.mark.parametrize("name", HERE)
def test_more_noise_is_worse(name: str) -> None:
    metric, picture, error = METRICS[name], 0.25 + 0.5 * noise(1, 3, SIZE, SIZE), noise(1, 3, SIZE, SIZE, seed=1) - 0.5
    little, much = (metric.compare(picture + scale * error, picture) for scale in (0.05, 0.4))
    assert (little > much) == metric.higher_is_better


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_pictures_have_finite_values_unless_equal(name: str, value: float) -> None:
    assert not math.isnan(METRICS[name].compare(constant(value), constant(value)))
    assert math.isfinite(METRICS[name].compare(constant(value), constant(0.5)))


@pytest.mark.parametrize("name", [name for name in HERE if name != "cvvdp"])  # which looks at motion
def test_a_video_is_the_mean_of_its_frames(name: str) -> None:
    metric, video, reference = METRICS[name], noise(3, 3, SIZE, SIZE), noise(3, 3, SIZE, SIZE, seed=1)
    video[1] = (video[1] + reference[1]) / 2
    each = [metric.compare(a[None], b[None]) for a, b in zip(video, reference, strict=True)]
    assert metric.compare(video, reference) == pytest.approx(sum(each) / 3)
    assert len(set(each)) == 3


@pytest.mark.parametrize("name", HERE)
def test_odd_sizes_and_the_smallest_one(name: str) -> None:
    metric = METRICS[name]
    for height, width in ((SIZE + 1, SIZE + 5), (metric.smallest, metric.smallest + 2)):
        picture = noise(1, 3, height, width)
        assert math.isfinite(metric.compare(1 - picture, picture))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.smallest > 1])
def test_below_the_smallest_size_is_refused(name: str) -> None:
    metric = METRICS[name]
    small = noise(1, 3, metric.smallest - 1, SIZE)
    with pytest.raises(InvalidOptionError, match=f"{metric.smallest}x{metric.smallest}.*{SIZE}x{metric.smallest - 1}"):
        metric.compare(small, small)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", METRICS)
def test_nan_is_refused_in_either(name: str, bad: float) -> None:
    fine, broken = noise(2, 3, SIZE, SIZE), noise(2, 3, SIZE, SIZE)
    broken[1, 2, 3, 4] = bad
    for video, reference in ((fine, broken), (broken, fine)):
        with pytest.raises(InvalidOptionError, match="1 of 221184 values are NaN or infinite"):
            METRICS[name].compare(video, reference)


@pytest.mark.parametrize("name", METRICS)
def test_other_shapes_are_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"2 frames of 192x192.*1 frame of 192x192"):
        METRICS[name].compare(noise(2, 3, SIZE, SIZE), noise(1, 3, SIZE, SIZE))
    with pytest.raises(InvalidOptionError, match="200x192"):
        METRICS[name].compare(noise(1, 3, SIZE, SIZE), noise(1, 3, SIZE, 200))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs])
def test_what_is_not_here_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS[name]
    for module in ("torchmetrics.functional.image", "flip_evaluator", "ssimulacra2", "torchvision", "pycvvdp"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "install" in metric.available()
    with pytest.raises(MissingPackageError, match=f"{metric.title} can't be computed: .*install"):
        metric.compare(noise(1, 3, SIZE, SIZE), noise(1, 3, SIZE, SIZE))


def test_a_broken_package_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert (
        METRICS["cvvdp"]
        .available()
        .startswith(
            "torchvision is installed but can't be imported (RuntimeError: operator torchvision::nms does not exist)"
        )
    )


# --- pictures in ---


def test_8_bit_arrays_do_not_wrap() -> None:
    dark, bright = np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 250, np.uint8)
    expected = 20 * math.log10(255 / 240)  # 10 − 250 in uint8 is 16, that is 24.0 dB
    forms: list[Callable[[np.ndarray], Any]] = [
        lambda a: a,
        lambda a: a[None],
        Image.fromarray,
        lambda a: [Image.fromarray(a)],
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: torch.from_numpy(a / 255).permute(2, 0, 1)[None],
        lambda a: (a / 255).astype(np.float32),
    ]
    for form in forms:
        assert METRICS["psnr"].compare(form(dark), form(bright)) == pytest.approx(expected)
        assert METRICS["psnr"].compare(form(bright), form(dark)) == pytest.approx(expected)


def test_every_form_keeps_each_pixel_in_its_place() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)  # (F, H, W, 3)
    expected = torch.from_numpy(pixels / 255).permute(0, 3, 1, 2)
    assert torch.equal(to_video(pixels), expected)
    assert torch.equal(to_video([Image.fromarray(frame) for frame in pixels]), expected)
    assert torch.equal(to_video(torch.from_numpy(pixels).permute(0, 3, 1, 2)), expected)
    assert to_video(expected.half()).dtype == torch.float64


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frame"),
        (np.zeros((0, 8, 8, 3), np.uint8), "one frame or more"),
        (np.zeros((8, 8), np.uint8), "not a video"),
        (torch.zeros(8, 8, 3), "channels second"),
        (torch.zeros(1, 4, 8, 8), "not a video"),
        (torch.zeros(1, 1, 3, 8, 8), "not a video"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((1, 3, 8, 8), -0.5), r"\[-0.5, -0.5\]"),
        (torch.full((1, 3, 8, 8), 255.0), "divide 8-bit values by 255"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "different sizes"),
    ],
)
def test_what_is_no_video_is_refused(frames: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        to_video(frames)


# --- PSNR, SSIM, MS-SSIM ---


def test_psnr_by_hand() -> None:
    reference = constant(0.0, frames=2, size=4)
    video = reference.clone()
    video[0] += 0.1  # 20 dB
    video[1] += 0.01  # 40 dB
    assert METRICS["psnr"].compare(video, reference) == pytest.approx(30)  # not 23: the mean of frames, not of errors


def test_identical_frames_do_not_make_a_mean_infinite() -> None:
    reference = constant(0.0, frames=2, size=4)
    video = reference.clone()
    video[0] += 0.1
    assert METRICS["psnr"].compare(video, reference) == pytest.approx(20)
    assert METRICS["psnr"].compare(reference, reference) == math.inf
    assert average([math.inf, math.inf]) == math.inf
    assert average([1, math.inf, 2]) == 1.5
    assert math.isnan(average([]))


def gaussian_window() -> np.ndarray:
    x = np.arange(-5, 6)
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    return np.outer(kernel, kernel)  # (11, 11)


def ssim_by_hand(a: np.ndarray, b: np.ndarray, part: str = "all") -> float:
    """Mean over channels (C, H, W) and places, with reflected borders; the contrast term alone where it needs none."""
    w = gaussian_window()
    if part == "all":
        a, b = (np.pad(x, ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (a, b))

    def mean(x: np.ndarray) -> np.ndarray:
        return (np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(1, 2)) * w).sum((-1, -2))

    c1, c2 = 0.01**2, 0.03**2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    contrast = (2 * cov + c2) / (va + vb + c2)
    full = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1) * contrast
    return float((contrast if part == "contrast" else full).mean())


@pytest.mark.parametrize(("height", "width"), [(11, 11), (17, 24), (64, 64)])
def test_ssim_against_numpy(height: int, width: int) -> None:
    a, b = noise(1, 3, height, width).double(), noise(1, 3, height, width, seed=1).double()
    b = 0.7 * a + 0.3 * b
    assert METRICS["ssim"].compare(a, b) == pytest.approx(ssim_by_hand(a[0].numpy(), b[0].numpy()), abs=1e-9)


def test_ssim_of_constant_pictures_by_hand() -> None:
    expected = (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4)  # nothing is left but the means
    assert METRICS["ssim"].compare(constant(0.3), constant(0.5)) == pytest.approx(expected)


def test_ms_ssim_against_numpy() -> None:
    a = torch.nn.functional.interpolate(noise(1, 3, 24, 25), (176, 181), mode="bicubic").clamp(0, 1).double()
    b = (0.8 * a + 0.2 * noise(1, 3, 176, 181, seed=1)).double()
    x, y, expected = a[0].numpy(), b[0].numpy(), 1.0
    for scale, beta in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        expected *= ssim_by_hand(x, y, "all" if scale == 4 else "contrast") ** beta
        x, y = (
            z[:, : z.shape[1] // 2 * 2, : z.shape[2] // 2 * 2]
            .reshape(3, z.shape[1] // 2, 2, z.shape[2] // 2, 2)
            .mean((2, 4))
            for z in (x, y)
        )
    assert METRICS["ms_ssim"].compare(a, b) == pytest.approx(expected, abs=1e-6)


# --- FLIP, SSIMULACRA2, ColorVideoVDP ---


def flip_of_constants(a: float, b: float) -> float:
    """FLIP's colour term of two greys, where no filter, edge or point has a say (Andersson et al., 2020)."""

    def linear(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    def lightness(v: float) -> float:
        y = linear(v)
        return 116 * (y ** (1 / 3) if y > (6 / 29) ** 3 else y / (3 * (6 / 29) ** 2) + 4 / 29) - 16

    # The largest difference that there is, of green and blue, in Hunt-adjusted Lab.
    green, blue = (0.878, -0.8619, 0.8319), (0.323, 0.7920, -1.0786)
    hunt = [np.array([100 * c[0], c[0] * 100 * c[1], c[0] * 100 * c[2]]) for c in (green, blue)]
    largest = (abs(hunt[0][0] - hunt[1][0]) + np.hypot(*(hunt[0][1:] - hunt[1][1:]))) ** 0.7
    difference, limit = abs(lightness(a) - lightness(b)) ** 0.7, 0.4 * largest
    if difference < limit:
        return 0.95 / limit * difference
    return 0.95 + (difference - limit) / (largest - limit) * 0.05


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.5), (0.5, 0.51)])
def test_flip_of_constant_pictures_by_hand(a: float, b: float) -> None:
    assert METRICS["flip"].compare(constant(a, size=32), constant(b, size=32)) == pytest.approx(
        flip_of_constants(a, b), rel=0.01
    )


def test_ssimulacra2_is_what_the_package_says_of_files(tmp_path: Path) -> None:
    from ssimulacra2 import compute_ssimulacra2

    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), np.uint8)
    pixels[1] = pixels[0] // 2 + 60
    for name, picture in zip("ab", pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    expected = compute_ssimulacra2(tmp_path / "b.png", tmp_path / "a.png")  # the reference first
    assert METRICS["ssimulacra2"].compare(pixels[0], pixels[1]) == pytest.approx(expected)


def test_color_video_vdp_is_what_the_package_says() -> None:
    metric = METRICS["cvvdp"]
    if problem := metric.available():
        pytest.skip(problem)
    from pycvvdp import cvvdp

    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 40, 48, 3), np.uint8)
    pixels[1] = pixels[0] // 2 + 60
    model = cvvdp(display_name="standard_4k", quiet=True, device=torch.device("cpu"))
    for frames, rate in ((1, 0), (6, 24)):
        a, b = (torch.from_numpy(video[:frames]).permute(3, 0, 1, 2)[None].float() / 255 for video in pixels)
        expected = float(model.predict(a, b, dim_order="BCFHW", frames_per_second=rate)[0])
        value = metrics.color_video_vdp(24).compare(pixels[0][:frames], pixels[1][:frames])
        assert value == pytest.approx(expected, abs=1e-4)


# --- LPIPS, with AlexNet's shapes and random weights ---


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    network = lpips_module.AlexNetFeatures()
    file = tmp_path / "alexnet-random.pth"
    torch.save({**network.state_dict(), "classifier.1.weight": torch.zeros(1)}, file)
    monkeypatch.setenv(lpips_module.WEIGHTS_VARIABLE, str(file))
    return file


def test_lpips_against_numpy(alexnet: Path) -> None:
    a, b = noise(1, 3, 64, 70), noise(1, 3, 64, 70, seed=1)
    state = torch.load(alexnet, weights_only=True)
    heads = lpips_module._heads()
    assert [tuple(head.shape) for head in heads] == [(1, c, 1, 1) for c in (64, 192, 384, 256, 256)]

    def features(x: torch.Tensor) -> list[np.ndarray]:
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        features = []
        for name, stride, padding, pool in (
            ("0", 4, 2, 0),
            ("3", 1, 2, 1),
            ("6", 1, 1, 1),
            ("8", 1, 1, 0),
            ("10", 1, 1, 0),
        ):
            x = torch.nn.functional.max_pool2d(x, 3, 2) if pool else x
            weight, bias = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
            x = torch.nn.functional.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            features.append(x[0].numpy().astype(np.float64))
        return features

    expected = 0.0
    for f, g, head in zip(features(a), features(b), heads, strict=True):
        f, g = (h / np.maximum(np.sqrt((h**2).sum(0)), 1e-12) for h in (f, g))
        expected += float((head[0].numpy() * (f - g) ** 2).sum(0).mean())
    assert METRICS["lpips"].compare(a, b) == pytest.approx(expected, rel=1e-3)
    assert METRICS["lpips"].compare(a, a) == 0


def test_lpips_against_torchmetrics(alexnet: Path) -> None:
    if problem := metrics.perceptual.TORCHVISION():
        pytest.skip(problem)
    from torchmetrics.functional.image.lpips import _LPIPS

    other = _LPIPS(net="alex", pretrained=True, pnet_rand=True, eval_mode=True)
    mine = torch.load(alexnet, weights_only=True)
    slices = {"0": "slice1.0", "3": "slice2.3", "6": "slice3.6", "8": "slice4.8", "10": "slice5.10"}
    for name, place in slices.items():
        layer = other.net.get_submodule(place)
        layer.weight.data, layer.bias.data = mine[f"features.{name}.weight"], mine[f"features.{name}.bias"]
    a, b = noise(1, 3, 64, 70), noise(1, 3, 64, 70, seed=1)
    assert METRICS["lpips"].compare(a, b) == pytest.approx(other(a, b, normalize=True).item(), rel=1e-5)


def test_lpips_without_weights_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(lpips_module.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "fetch them once" in METRICS["lpips"].available()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/alexnet-owt-7be5be79.pth").touch()
    assert METRICS["lpips"].available() == ""
    monkeypatch.setenv(lpips_module.WEIGHTS_VARIABLE, str(tmp_path / "none.pth"))
    assert "which is not a file" in METRICS["lpips"].available()


# --- CLIP Score, with a tiny CLIP made here ---


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def clip_by_hand(folder: Path, frame: torch.Tensor, ids: list[int]) -> float:
    """Of a picture of 16x16 pixels, which the processor leaves as large as it is."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pixels = ((frame * 255).round() / 255 - mean) / std
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels[None].float()).pooler_output)[0]
        text = model.text_projection(model.text_model(input_ids=torch.tensor([ids])).pooler_output)[0]
    return 100 * max(float(image @ text / image.norm() / text.norm()), 0.0)


def test_clip_score_by_hand(clip_folder: Path) -> None:
    score, video = ClipScore(clip_folder), noise(6, 3, 16, 16)
    expected = [clip_by_hand(clip_folder, frame, [0, RED, APPLE, 1]) for frame in video]
    for frame, by_hand in zip(video, expected, strict=True):
        assert score.score(frame, "Red  apple") == pytest.approx(by_hand, abs=1e-3)
    assert score.score(video, "red apple") == pytest.approx(sum(expected) / 6, abs=1e-3)
    assert len({round(by_hand, 3) for by_hand in expected}) > 1
    assert score.score(video[0], "dog") == pytest.approx(clip_by_hand(clip_folder, video[0], [0, DOG, 1]), abs=1e-3)


def test_clip_score_is_never_negative(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScore, "_cosines", lambda *_: torch.tensor([-0.5, 0.25], dtype=torch.float64))
    assert ClipScore(clip_folder).score(noise(2, 3, 16, 16), "dog") == 12.5  # (0 + 25) / 2


def test_clip_score_takes_other_sizes_and_long_prompts(clip_folder: Path) -> None:
    score = ClipScore(clip_folder)
    assert 0 <= score.score(noise(1, 3, 33, 47), "red apple " * 50) <= 100
    with pytest.raises(InvalidOptionError, match="it is empty"):
        score.score(noise(1, 3, 16, 16), " ")


def test_clip_score_without_a_model(tmp_path: Path, clip_folder: Path) -> None:
    assert ClipScore(clip_folder).available() == ""
    assert "hf download nobody/none" in ClipScore("nobody/none").available()
    assert "no config.json" in ClipScore(tmp_path).available()
    with pytest.raises(MissingPackageError, match="not on this machine"):
        ClipScore("nobody/none").score(noise(1, 3, 16, 16), "dog")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "no preprocessor_config.json" in ClipScore(tmp_path).available()
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    assert "a model of type 'bert'" in ClipScore(tmp_path).available()
    (tmp_path / "config.json").write_text("{")
    assert "a model of type 'unknown'" in ClipScore(tmp_path).available()
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    assert "no weights" in ClipScore(tmp_path).available()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MissingPackageError, match="can't be loaded as a CLIP model"):
        ClipScore(tmp_path).score(noise(1, 3, 16, 16), "dog")


def test_a_clip_that_lacks_weights_is_not_filled_up_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_tiny_clip(tmp_path) / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("text_projection")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(MissingPackageError, match="its weights lack text_projection"):
        ClipScore(tmp_path).score(noise(1, 3, 16, 16), "dog")


def test_clip_score_of_what_was_fetched_from_the_hub(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--somebody--clip"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs/main").write_text("abc")
    snapshot = Path(shutil.copytree(clip_folder, kept / "snapshots/abc"))
    hub, picture = ClipScore("somebody/clip"), noise(1, 3, 16, 16)
    assert hub.available() == ""
    assert hub.fingerprint() == ClipScore(clip_folder).fingerprint() != ""
    assert hub.score(picture, "dog") == ClipScore(clip_folder).score(picture, "dog")
    (snapshot / "model.safetensors").unlink()  # as where the fetch was cut off
    assert "not on this machine (no weights)" in hub.available()


def test_the_fingerprint_of_a_clip_is_of_its_weights(tmp_path: Path) -> None:
    score = ClipScore(save_tiny_clip(tmp_path))
    before, weights = score.fingerprint(), tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert score.fingerprint() != before
    assert ClipScore("nobody/none").fingerprint() == ""


# --- latents along the path ---


def test_latent_rmse_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert latent_rmse(a, b) == pytest.approx(1.0)  # sqrt(4 / 4)
    assert latent_rmse(a, a) == 0
    with pytest.raises(InvalidOptionError, match="shape"):
        latent_rmse(a, b[:1])
    with pytest.raises(InvalidOptionError, match="NaN"):
        latent_rmse(a, torch.full_like(a, math.nan))


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "sdxl"])
def test_a_path_ends_in_the_latents_of_the_pipeline(name: str) -> None:
    import spectrum_diffusion

    entry = PIPELINES[name]
    pipe, full, method = entry.build(), LatentPath(), LatentPath(steps=(2, 12))
    final = entry.call(pipe, steps=12, callback_on_step_end=full)
    assert list(full.latents) == list(range(1, 13))
    assert torch.equal(full.latents[12].flatten(), torch.as_tensor(final).float().flatten())
    with spectrum_diffusion.enable(pipe, "paper"):
        entry.call(pipe, steps=12, callback_on_step_end=method)
    errors = {step: latent_rmse(method.latents[step], full.latents[step]) for step in method.latents}
    assert list(errors) == [2, 12]
    assert errors[2] == 0  # the first steps are evaluated
    assert errors[12] > 0


def test_a_path_copies_clears_and_hands_on() -> None:
    path, latents, seen = LatentPath(then=lambda *a: seen.append(a[1]) or {"latents": "other"}), torch.zeros(2), []
    for step in range(3):
        latents += 1  # in place, as samplers do
        assert path(None, step, None, {"latents": latents}) == {"latents": "other"}
    assert [path.latents[step][0].item() for step in (1, 2, 3)] == [1, 2, 3]
    assert seen == [0, 1, 2]
    path(None, 0, None, {"latents": latents})
    assert list(path.latents) == [1]


def test_a_path_refuses_wrong_steps_and_a_callback_without_latents() -> None:
    with pytest.raises(InvalidOptionError, match="counted from 1"):
        LatentPath(steps=[0, 5])
    with pytest.raises(InvalidOptionError, match="no latents"):
        LatentPath()(None, 0, None, {})
