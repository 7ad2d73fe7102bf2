"""ImageReward and VBench as other programs: our scripts run by real interpreters, with stand-ins for their packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_ins import stand_in

from spectrum_diffusion.bench.metrics import programs
from spectrum_diffusion.bench.metrics.programs import (
    PROGRAMS,
    QUALITY,
    Entry,
    environment_of,
    parse_image_reward,
    parse_vbench,
    read_manifest,
    vbench_quality,
    write_manifest,
)
from spectrum_diffusion.bench.metrics.programs.environment import FOLDER_VARIABLE
from spectrum_diffusion.errors import InvalidOptionError, MissingPackageError, ProgramError

# VBench's leaderboard, in percent: its seven dimensions, and the Quality Score that it publishes beside them.
PUBLISHED = {
    "HunyuanVideo": ((97.37, 97.76, 99.44, 98.99, 60.36, 67.56, 70.83), 85.09),
    "CogVideoX-5B": ((96.23, 96.52, 98.66, 96.92, 61.98, 62.90, 70.97), 82.75),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_quality_of_published_scores(model: str) -> None:
    percent, quality = PUBLISHED[model]
    scores = {name: value / 100 for name, value in zip(QUALITY, percent, strict=True)}
    assert vbench_quality(scores) == pytest.approx(quality, abs=0.015)  # of values rounded to two places


def test_quality_by_hand() -> None:
    assert vbench_quality({name: d.low for name, d in QUALITY.items()}) == 0
    assert vbench_quality({name: d.high for name, d in QUALITY.items()}) == pytest.approx(100)
    only = {name: d.low for name, d in QUALITY.items()}
    assert vbench_quality({**only, "dynamic_degree": 1.0}) == pytest.approx(100 * 0.5 / 6.5)
    assert vbench_quality({**only, "imaging_quality": 0.5, "scene": 0.9}) == pytest.approx(100 * 0.5 / 6.5)


def test_quality_needs_all_seven_within_0_and_1() -> None:
    scores = dict.fromkeys(QUALITY, 0.9)
    del scores["motion_smoothness"]
    with pytest.raises(InvalidOptionError, match="motion_smoothness too"):
        vbench_quality(scores)
    for wrong in (67.5, -0.1, float("nan")):
        with pytest.raises(InvalidOptionError, match=r"imaging_quality.*divide percentages"):
            vbench_quality({**dict.fromkeys(QUALITY, 0.9), "imaging_quality": wrong})


# --- manifests ---


def test_manifest_comes_back(tmp_path: Path) -> None:
    entries = [Entry("0.png", 'a "red" apple\nwith ü'), Entry("1.png", "dog", "dynamic_degree,motion_smoothness")]
    for entry in entries:
        (tmp_path / entry.file).touch()
    assert write_manifest(tmp_path, entries) == tmp_path / "manifest.jsonl"
    assert read_manifest(tmp_path) == entries


def test_wrong_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="has no manifest"):
        read_manifest(tmp_path)
    with pytest.raises(InvalidOptionError, match="nothing to list"):
        write_manifest(tmp_path, [])
    with pytest.raises(InvalidOptionError, match=r"no file a\.png"):
        write_manifest(tmp_path, [Entry("a.png", "a")])
    (tmp_path / "a.png").touch()
    with pytest.raises(InvalidOptionError, match=r"listed twice: \['a.png'\]"):
        write_manifest(tmp_path, [Entry("a.png", "a"), Entry("a.png", "b")])
    for text in ("{", "[1]\n", '{"file": "a.png"}\n'):
        (tmp_path / "manifest.jsonl").write_text(text)
        with pytest.raises(InvalidOptionError, match="must list a file and its prompt on each line"):
            read_manifest(tmp_path)


# --- what the programs write ---

ENTRIES = [Entry("a.mp4", "a"), Entry("b.mp4", "b", "temporal_flickering")]


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_image_reward_is_the_mean_of_its_files(tmp_path: Path) -> None:
    scores = [{"file": "b.mp4", "score": -0.5}, {"file": "a.mp4", "score": 1.25}]
    scored = parse_image_reward(written(tmp_path / "r.json", {"scores": scores}), ENTRIES)
    assert (scored.value, scored.files) == (0.375, {"a.mp4": 1.25, "b.mp4": -0.5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ([], "not a result of ImageReward"),
        ({"scores": [{"file": "a.mp4"}]}, "not a result of ImageReward"),
        ({"scores": [{"file": "a.mp4", "score": 1}]}, "no value of b.mp4"),
        ({"scores": [{"file": "a.mp4", "score": 1}, {"file": "b.mp4", "score": float("nan")}]}, "no value of b.mp4"),
    ],
)
def test_other_results_of_image_reward_are_refused(tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        parse_image_reward(written(tmp_path / "r.json", text), ENTRIES)


def videos(*names: str) -> list[dict[str, Any]]:
    return [{"video_path": f"/somewhere/{name}", "video_results": 0.5} for name in names]


def test_vbench_results_become_the_quality(tmp_path: Path) -> None:
    percent, quality = PUBLISHED["HunyuanVideo"]
    result: dict[str, Any] = {name: [v / 100, videos("a.mp4")] for name, v in zip(QUALITY, percent, strict=True)}
    result["temporal_flickering"][1] += videos("b.mp4")
    scored = parse_vbench(written(tmp_path / "v.json", result), ENTRIES)
    assert scored.value == pytest.approx(quality, abs=0.015)
    assert scored.parts["dynamic_degree"] == pytest.approx(0.7083)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "not a result of VBench"),
        ({"dynamic_degree": 0.5}, "not a result of VBench"),
        ({"dynamic_degree": [0.5, [{}]]}, "not a result of VBench"),
        ({"dynamic_degree": [0.5, videos("a.mp4")]}, "no value of b.mp4"),
    ],
)
def test_other_results_of_vbench_are_refused(tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        parse_vbench(written(tmp_path / "v.json", text), ENTRIES)


# --- running them: the scripts as they are, the packages made up ---

FAKES = {
    "image_reward": {
        "ImageReward.py": """
            class Model:
                def score(self, prompt, path):
                    assert open(path).read() == "picture"
                    return len(prompt) / 10
            def load(name, device):
                assert (name, device) == ("ImageReward-v1.0", "cpu")
                return Model()
        """,
        "torch.py": "import contextlib\nno_grad = contextlib.nullcontext\n",
    },
    "vbench": {
        "vbench/__init__.py": "",
        "vbench/utils.py": "def init_submodules(dimensions):\n    return {name: name for name in dimensions}\n",
        **{
            f"vbench/{name}.py": f"""
            import json
            def compute_{name}(listing, device, model):
                assert (device, model) == ("cpu", "{name}")
                entries = [entry for entry in json.load(open(listing)) if "{name}" in entry["dimension"]]
                files = [file for entry in entries for file in entry["video_list"]]
                return 0.9, [dict(video_path=file, video_results=0.9) for file in files]
            """
            for name in QUALITY
        },
    },
}


@pytest.fixture
def fake_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "programs"))
    for name, files in FAKES.items():
        stand_in(name, files)
    return tmp_path / "programs"


def a_folder(path: Path) -> Path:
    path.mkdir()
    for entry in ENTRIES:
        (path / entry.file).write_text("picture")
    write_manifest(path, ENTRIES)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")
def test_programs_run_over_a_folder(fake_environments: Path, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "files")
    assert all(program.available() == "" for program in PROGRAMS.values())
    assert PROGRAMS["image_reward"].run(folder).files == {"a.mp4": 0.1, "b.mp4": 0.1}
    scored = PROGRAMS["vbench_quality"].run(folder)
    assert scored.value == pytest.approx(vbench_quality(dict.fromkeys(QUALITY, 0.9)))
    judged = json.loads((folder / "vbench_quality.json").read_text())
    assert [len(judged[name][1]) for name in QUALITY] == [1, 1, 2, 1, 1, 1, 1]  # b.mp4 in its own dimension alone


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")
def test_a_failing_program_says_what_it_said(fake_environments: Path, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "files")
    PROGRAMS["image_reward"].run(folder)
    (folder / "a.mp4").write_text("broken")
    with pytest.raises(ProgramError, match=r"ImageReward failed with 1.*image_reward.log.*AssertionError"):
        PROGRAMS["image_reward"].run(folder)
    assert not (folder / "image_reward.json").exists()  # nothing of an earlier run is taken for this one's


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_its_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "programs"))
    with pytest.raises(MissingPackageError, match=r"python -m spectrum_diffusion\.metrics\.programs"):
        PROGRAMS[name].run(a_folder(tmp_path / "files"))


# --- making the environments ---


def test_every_program_has_its_script_and_its_pinned_versions() -> None:
    folder = Path(programs.__file__).parent
    for program in PROGRAMS.values():
        assert (folder / f"run_{program.environment}.py").is_file()
        lines = (folder / f"{program.environment}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be run; the interpreter says that it is 3.11."""
    said: list[str] = []
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "programs"))

    def run(command: tuple[str, ...], **options: Any) -> Any:
        said.append(" ".join(command))
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        failed = "fail" in command[0] or (len(said) > 3 and "broken" in said)
        return subprocess.CompletedProcess(command, int(failed), "3.11\n", "no such package")

    monkeypatch.setattr(subprocess, "run", run)
    return said


def test_install_takes_the_pinned_versions(commands: list[str]) -> None:
    assert programs.install("vbench", sys.executable) == environment_of("vbench")
    assert commands[1] == f"{sys.executable} -m venv {environment_of('vbench')}"
    assert "--no-deps --no-build-isolation -r" in commands[-1]
    assert commands[-1].endswith("vbench.txt")


def test_half_an_environment_does_not_stay(commands: list[str]) -> None:
    commands.append("broken")
    with pytest.raises(ProgramError, match="no such package"):
        programs.install("vbench", sys.executable)
    assert not environment_of("vbench").exists()


def test_wrong_names_and_interpreters_are_refused(commands: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOptionError, match="choose one of image_reward, vbench"):
        programs.install("fid")
    with pytest.raises(InvalidOptionError, match="no interpreter 'python0'"):
        programs.install("vbench", "python0")
    monkeypatch.setattr("spectrum_diffusion.bench.metrics.programs.environment.PYTHONS", ("3.10",))
    with pytest.raises(InvalidOptionError, match=r"is Python 3\.11, which not all"):
        programs.install("vbench", sys.executable)
