"""What an evaluation measures beside the likeness: CLIP Score, ImageReward, VBench, memory; and all of it on videos."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompted import prompted, request
from stand_ins import launches, stand_in
from tiny_clip import save_tiny_clip
from typer.testing import CliRunner

from spectrum_diffusion.bench import mp4
from spectrum_diffusion.bench.cost import ALLOCATED
from spectrum_diffusion.bench.evaluate import Row, evaluate, files
from spectrum_diffusion.bench.evaluate.measures import choose_metrics
from spectrum_diffusion.bench.metrics import METRICS, ClipScore
from spectrum_diffusion.bench.metrics import clip as clip_module
from spectrum_diffusion.bench.metrics.programs import QUALITY, vbench_quality
from spectrum_diffusion.bench.metrics.programs.environment import FOLDER_VARIABLE
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.cli import app
from spectrum_diffusion.errors import InvalidOptionError

PROMPTS = (Prompt("red apple", "fruit"), Prompt("dog", "animal"))
LABELS = ("reference", "fewer", "reuse")
unix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def row_of(results: Any, label: str, name: str) -> dict[str, Any]:
    return next(row["metrics"][name] for row in results.rows if row["label"] == label)


def ask(*metrics: str, **changes: Any) -> Any:
    return request(metrics=metrics, prompts=PROMPTS, **changes)


# --- CLIP Score ---


def test_clip_score_is_that_of_the_kept_pictures_and_their_prompts(pipe: Any, clip: str, tmp_path: Path) -> None:
    results = evaluate(pipe, ask("psnr", "clip_score", clip=clip), tmp_path)
    for line in lines(tmp_path):
        picture = files.decode((tmp_path / line["file"]).read_bytes(), ".png")
        assert line["metrics"]["clip_score"] == ClipScore(clip).score(picture, line["prompt"])
        assert ("psnr" in line["metrics"]) == (line["row"] != "reference")
    for label in LABELS:
        values = [line["metrics"]["clip_score"] for line in lines(tmp_path) if line["row"] == label]
        assert row_of(results, label, "clip_score")["mean"] == pytest.approx(statistics.fmean(values))
    assert results.metrics["clip_score"]["title"] == "CLIP Score"
    assert "against_baseline" not in row_of(results, "reference", "clip_score")
    assert row_of(results, "reuse", "clip_score")["against_baseline"]["verdict"] == "too few prompts"


def test_the_reference_has_its_clip_score_in_every_table(pipe: Any, clip: str, tmp_path: Path) -> None:
    results = evaluate(pipe, ask("psnr", "clip_score", clip=clip), tmp_path)
    mean = f"{row_of(results, 'reference', 'clip_score')['mean']:.2f}"
    for name in ("table.md", "table.tex"):
        text = (tmp_path / name).read_text("utf-8")
        row = next(line for line in text.splitlines() if "reference" in line)
        assert mean in row.replace("$", "")
        assert "CLIP Score" in text
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f'<td data-value="{row_of(results, "reference", "clip_score")["mean"]!r}">{mean}<small>' in page
    assert "100 · max(cos, 0) of clip" in page  # which CLIP, without the machine's path
    assert "CLIP Score against evaluations (NFE)" in page


def test_verdicts_of_clip_score_are_prompt_by_prompt(pipe: Any, clip: str, tmp_path: Path) -> None:
    """Of a method that draws as the baseline does there is no difference, with prompts enough."""
    rows = tuple(Row("fewer-steps", {"speedup": 2}, label) for label in ("one", "other"))
    prompts = tuple(Prompt(text) for text in ("red", "apple", "dog", "red apple", "red dog", "apple dog"))
    results = evaluate(pipe, request(*rows, metrics=("clip_score",), clip=clip, prompts=prompts), tmp_path)
    gap = row_of(results, "other", "clip_score")["against_baseline"]
    assert (gap["mean"], gap["verdict"]) == (0, "no difference seen")


def test_without_names_clip_score_is_taken_where_its_model_is(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_module, "_find", lambda model: None)
    assert "clip_score" not in choose_metrics(ask()).every  # nothing was named, and nothing chosen
    without = choose_metrics(replace(ask(), metrics=None))
    assert set(without.every) == {name for name, metric in METRICS.items() if not metric.available()}
    monkeypatch.setattr(clip_module, "_find", lambda model: Path(clip) if model == clip_module.CLIP_MODEL else None)
    assert "clip_score" in choose_metrics(replace(ask(), metrics=None)).images
    monkeypatch.undo()
    assert choose_metrics(replace(ask(), metrics=None, clip=clip)).images["clip_score"] == ClipScore(clip)


def test_a_clip_that_can_not_be_had_is_refused_before_the_work(pipe: Any, clip: str, tmp_path: Path) -> None:
    for asked in (ask("clip_score", clip="nobody/none"), replace(ask(), metrics=None, clip="nobody/none")):
        with pytest.raises(InvalidOptionError, match=r"clip_score.*hf download nobody/none"):
            evaluate(pipe, asked, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(InvalidOptionError, match="no effect without the metric 'clip_score'"):
        ask("psnr", clip=clip)


def test_clip_score_is_computed_once_for_a_model(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    original = ClipScore.score

    def score(self: ClipScore, video: Any, prompt: str) -> float:
        judged.append(prompt)
        return original(self, video, prompt)

    monkeypatch.setattr(ClipScore, "score", score)
    asked = ask("clip_score", clip=str(save_tiny_clip(tmp_path / "clip")))
    first = evaluate(pipe, asked, tmp_path / "out")
    assert len(judged) == 6
    assert evaluate(pipe, asked, tmp_path / "out").rows == first.rows
    assert len(judged) == 6
    save_tiny_clip(tmp_path / "clip", seed=6)
    again = evaluate(pipe, asked, tmp_path / "out")
    assert (len(judged), again.computed) == (12, 0)
    assert row_of(again, "reference", "clip_score")["mean"] != row_of(first, "reference", "clip_score")["mean"]


def test_a_metric_that_breaks_on_the_reference_leaves_the_rows(
    pipe: Any, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched: list[bool] = []

    def breaks(self: ClipScore, video: Any, prompt: str) -> float:
        untouched.append(True)
        if len(untouched) == 1:
            raise RuntimeError("no memory")
        return 20.0

    monkeypatch.setattr(ClipScore, "score", breaks)
    results = evaluate(pipe, ask("clip_score", clip=clip), tmp_path)
    assert results.failures == {"reference": "'red apple', seed 0: RuntimeError: no memory"}
    assert [row["units"] for row in results.rows] == [2, 2, 2]
    assert row_of(results, "reuse", "clip_score")["mean"] == 20.0


def test_a_clip_that_can_not_be_loaded_is_said_and_tried_again(pipe: Any, tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text("{")
    asked = ask("psnr", "clip_score", clip=str(folder))
    results = evaluate(pipe, asked, tmp_path / "out")
    assert list(results.problems) == [f"CLIP Score of {label}" for label in LABELS]
    assert "can't be loaded as a CLIP model" in results.problems["CLIP Score of reuse"]
    assert results.failures == {}
    assert "can't be loaded" in row_of(results, "reuse", "clip_score")["problem"]
    assert row_of(results, "reuse", "psnr")["prompts"] == len(PROMPTS)
    save_tiny_clip(folder)
    again = evaluate(pipe, asked, tmp_path / "out")
    assert again.problems == {}
    assert row_of(again, "reuse", "clip_score")["prompts"] == len(PROMPTS)


def test_pictures_too_small_for_a_metric_are_no_problem(pipe: Any, tmp_path: Path) -> None:
    results = evaluate(pipe, ask("psnr", "ms_ssim"), tmp_path)
    assert results.problems == {}
    assert "needs 176x176 pixels or more" in row_of(results, "reuse", "ms_ssim")["problem"]


# --- ImageReward and VBench, by stand-ins ---

IMAGE_REWARD = {
    "ImageReward.py": """
        import os, struct
        class Model:
            def score(self, prompt, path):
                assert open(path, "rb").read(4) == b"\\x89PNG"
                assert os.environ.get("BREAKS", "nothing") not in path, "out of luck"
                return len(prompt) / 10 + ("/reuse/" in path)
        def load(name, device):
            assert device == "cpu"
            return Model()
    """,
    "torch.py": "import contextlib\nno_grad = contextlib.nullcontext\n",
}
VBENCH = {
    "vbench/__init__.py": "",
    "vbench/utils.py": "def init_submodules(dimensions):\n    return {name: name for name in dimensions}\n",
    **{
        f"vbench/{name}.py": f"""
        import json
        def compute_{name}(listing, device, model):
            listed = [entry for entry in json.load(open(listing)) if "{name}" in entry["dimension"]]
            files = [file for entry in listed for file in entry["video_list"]]
            assert all(open(file, "rb").read(8)[4:] == b"ftyp" for file in files)
            value = 0.9 if "/reuse/" in files[0] else 0.95
            return value, [dict(video_path=file, video_results=value) for file in files]
        """
        for name in QUALITY
    },
}


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Stand-ins for both; answers with the launches of one."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "environments"))
    interpreters = {"image_reward": stand_in("image_reward", IMAGE_REWARD), "vbench": stand_in("vbench", VBENCH)}
    return lambda name: launches(interpreters[name])


@unix
def test_image_reward_runs_row_by_row_and_once(pipe: Any, environments: Any, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", ask("psnr", "image_reward")
    results = evaluate(pipe, asked, out)
    assert len(environments("image_reward")) == 3
    for line in lines(out):
        assert line["metrics"]["image_reward"] == len(line["prompt"]) / 10 + (line["row"] == "reuse")
    assert row_of(results, "reference", "image_reward")["mean"] == pytest.approx(0.6)
    gap = row_of(results, "reuse", "image_reward")["against_baseline"]
    assert (gap["mean"], gap["low"]) == pytest.approx((1.0, 1.0))
    assert evaluate(pipe, asked, out).rows == results.rows
    assert len(environments("image_reward")) == 3


@unix
def test_image_reward_is_asked_about_new_pictures_alone(pipe: Any, environments: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(pipe, ask("image_reward"), out)
    more = evaluate(pipe, request(metrics=("image_reward",), prompts=(*PROMPTS, Prompt("red"))), out)
    assert row_of(more, "reference", "image_reward")["prompts"] == 3
    manifests = [launch.split()[1] for launch in environments("image_reward")]
    counts = [len(Path(manifest).read_text().splitlines()) for manifest in manifests]
    assert counts == [2, 2, 2, 1, 1, 1]


@unix
def test_a_program_that_fails_is_said_of_its_row_and_loses_nothing(
    pipe: Any, environments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", ask("psnr", "image_reward")
    monkeypatch.setenv("BREAKS", "/fewer-steps/")
    results = evaluate(pipe, asked, out)
    assert list(results.problems) == ["ImageReward of fewer"]
    assert "out of luck" in results.problems["ImageReward of fewer"]
    assert results.failures == {}
    assert row_of(results, "fewer", "image_reward")["mean"] is None
    assert "out of luck" in row_of(results, "fewer", "image_reward")["problem"]
    assert row_of(results, "fewer", "psnr")["mean"] is not None
    assert row_of(results, "reuse", "image_reward")["mean"] == pytest.approx(1.6)
    assert "Not computed: ImageReward of fewer." in (out / "table.md").read_text()
    page = (out / "report.html").read_text()
    assert "What failed" in page
    assert "<strong>ImageReward of fewer</strong>" in page
    monkeypatch.delenv("BREAKS")
    again = evaluate(pipe, asked, out)  # it is tried again, and nothing else is
    assert (again.computed, again.problems) == (0, {})
    assert row_of(again, "fewer", "image_reward")["mean"] == pytest.approx(0.6)
    assert len(environments("image_reward")) == 4


@unix
def test_other_weights_are_another_value(
    pipe: Any, environments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(pipe, ask("image_reward"), tmp_path / "out")
    monkeypatch.setenv("SPECTRUM_IMAGE_REWARD", "other.pt")
    evaluate(pipe, ask("image_reward"), tmp_path / "out")
    assert len(environments("image_reward")) == 6


@unix
def test_vbench_judges_a_row_of_videos_as_one(environments: Any, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pipe, out, asked = prompted("wan"), tmp_path / "out", ask("psnr", "vbench_quality")
    results = evaluate(pipe, asked, out)
    assert results.problems == {}
    for label, value in (("reference", 0.95), ("fewer", 0.95), ("reuse", 0.9)):
        quality = row_of(results, label, "vbench_quality")
        assert quality["mean"] == pytest.approx(vbench_quality(dict.fromkeys(QUALITY, value)))
        assert quality["parts"] == dict.fromkeys(QUALITY, value)
        assert (quality["low"], quality["prompts"]) == (None, 2)
        assert "against_baseline" not in quality
    assert all("vbench_quality" not in line["metrics"] for line in lines(out))
    assert "VBench Quality: one value for all images of a row" in (out / "table.md").read_text()
    assert evaluate(pipe, asked, out).rows == results.rows
    assert len(environments("vbench")) == 3
    for file in out.glob("units/**/*.mp4"):  # as where nothing could write them
        file.unlink()
    evaluate(pipe, ask("vbench_quality", seeds=(0, 1)), out)
    assert len(environments("vbench")) == 6
    assert len(list(out.glob("units/**/*.mp4"))) == 12


@unix
def test_prompts_of_other_dimensions_are_not_judged(environments: Any, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    prompts = (Prompt("red", "scene"), Prompt("dog", "subject_consistency,scene"), Prompt("apple", "fruit"))
    evaluate(prompted("wan"), request(metrics=("vbench_quality",), prompts=prompts), tmp_path / "out")
    manifest = Path(environments("vbench")[0].split()[1]).read_text().splitlines()
    judged = {entry["prompt"]: entry["category"] for entry in map(json.loads, manifest)}
    assert judged == {"dog": "subject_consistency", "apple": ""}


@unix
def test_a_program_of_the_other_kind_says_so(pipe: Any, environments: Any, tmp_path: Path) -> None:
    pictures = evaluate(pipe, ask("psnr", "vbench_quality"), tmp_path / "pictures")
    assert pictures.problems["VBench Quality of reuse"].startswith("VBench Quality judges videos, these are images")
    videos = evaluate(prompted("wan"), ask("psnr", "image_reward"), tmp_path / "videos")
    assert videos.problems["ImageReward of reference"].startswith("ImageReward judges images, these are videos")
    assert row_of(videos, "reuse", "psnr")["mean"] is not None
    assert environments("vbench") == environments("image_reward") == []


@pytest.mark.parametrize(("name", "environment"), [("image_reward", "image_reward"), ("vbench_quality", "vbench")])
def test_without_the_environment_the_command_that_makes_it_is_named(
    name: str, environment: str, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "environments"))
    command = rf"python -m spectrum_diffusion\.metrics\.programs {environment}$"
    with pytest.raises(InvalidOptionError, match=rf"'{name}' is not available: .*{command}"):
        evaluate(pipe, ask(name), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@unix
def test_the_command_takes_them_all(environments: Any, clip: str, tmp_path: Path, monkeypatch: Any) -> None:
    arguments = ["evaluate", "dog", "--device", "cpu", "--steps", "8", "--methods", "fewer-steps:speedup=2,reuse"]
    arguments += ["--metrics", "psnr,clip_score,image_reward", "--clip", clip, "-o", str(tmp_path / "out"), "--json"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    reference, fewer, _ = json.loads(ended.stdout)["rows"]
    assert set(reference["metrics"]) == {"clip_score", "image_reward"}
    assert set(fewer["metrics"]) == {"psnr", "clip_score", "image_reward"}
    monkeypatch.setenv("SPECTRUM_IMAGE_REWARD", "other.pt")
    monkeypatch.setenv("BREAKS", "/reuse/")
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1
    assert "ImageReward of reuse failed:" in ended.stderr
    assert set(json.loads(ended.stdout)["problems"]) == {"ImageReward of reuse"}


# --- memory in the tables ---


def test_resident_memory_is_for_the_page_and_a_devices_for_print_too(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectrum_diffusion.bench import cost

    evaluate(pipe, ask("psnr"), tmp_path)
    page, table = ((tmp_path / name).read_text("utf-8") for name in ("report.html", "table.md"))
    assert "peak MiB" in page
    assert "the highest memory use during a call, resident in the process:" in page
    assert "peak MiB" not in table
    # The warm-up, then the first prompt with two calls more than the second, to count operations.
    peaks = iter([3 * 2**20] * 6 + [5 * 2**20] * 90)
    monkeypatch.setattr(cost, "peak_memory", lambda device: cost.Memory(next(peaks), ALLOCATED))
    results = evaluate(pipe, ask("psnr", seeds=(7,)), tmp_path)
    assert results.rows[0]["memory"] == {"median": 4 * 2**20, "most": 5 * 2**20, "kind": ALLOCATED}
    for name in ("table.md", "table.tex", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert "peak MiB" in text
        assert f", {ALLOCATED}" in text
        assert "4 (5)" in text
    monkeypatch.setattr(cost, "peak_memory", lambda device: cost.Memory(0, "unknown on this system"))
    results = evaluate(pipe, ask("psnr", seeds=(8,)), tmp_path)
    assert results.rows[0]["memory"] is None


# --- videos ---


@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
def test_a_videos_metric_is_the_mean_over_its_frames_and_an_mp4_shows_it(name: str, tmp_path: Path) -> None:
    results = evaluate(prompted(name), ask("psnr"), tmp_path)
    assert results.failures == {}
    units = {(unit["row"], unit["prompt"]): unit for unit in results.units}
    kept = {
        row: files.decode((tmp_path / units[row, "dog"]["file"]).read_bytes(), ".zip") for row in ("reference", "reuse")
    }
    each = [METRICS["psnr"].compare(*pair) for pair in zip(kept["reuse"], kept["reference"], strict=True)]
    assert len(each) > 1
    assert units["reuse", "dog"]["metrics"]["psnr"] == pytest.approx(statistics.fmean(each))
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    for unit in results.units:
        reader = ffmpeg.read_frames(str((tmp_path / unit["file"]).with_suffix(".mp4")))
        about = next(reader)
        assert about["fps"] == mp4.FPS
        assert list(about["size"]) == unit["size"]
        assert len(list(reader)) == unit["frames"]


@pytest.mark.skipif(bool(METRICS["cvvdp"].available()), reason=METRICS["cvvdp"].available())
def test_a_metric_of_motion_sees_the_video_as_one(tmp_path: Path) -> None:
    results = evaluate(prompted("wan"), ask("cvvdp"), tmp_path)
    assert all(0 < row_of(results, label, "cvvdp")["mean"] <= 10 for label in LABELS[1:])
