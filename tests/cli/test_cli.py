"""The command line: results on stdout, all else on stderr, whole files, mistakes as one message."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers.utils.logging  # noqa: F401 (its handler keeps the stderr of now, not that of a runner)
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from spectrum_diffusion import DENOISERS, METHODS, loading
from spectrum_diffusion.atomic import StoreError, written
from spectrum_diffusion.bench import mp4
from spectrum_diffusion.bench.evaluate import sampling
from spectrum_diffusion.bench.prompts import load_prompts
from spectrum_diffusion.cli import app, catalog, doctor, pipelines
from spectrum_diffusion.cli.guard import MistakeError
from spectrum_diffusion.cli.outputs import paths_for, save
from spectrum_diffusion.cli.request import parse_methods, parse_options, parse_size, read_prompts

STEPS = 10
QUICK = ["--steps", str(STEPS), "--device", "cpu"]
RESULT_KEYS = {"output", "steps", "nfe", "evaluated", "speedup", "seed"}


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Any:
    """Load the shipped model once for the module; a fresh load is what the subprocess tests."""
    patch = pytest.MonkeyPatch()
    original, cache = pipelines.load, {}

    def load(request: Any) -> Any:
        if request.model != "tiny-flux" or request.image or request.lora:
            return original(request)
        if "pipe" not in cache:
            cache["pipe"] = original(request)
        pipelines.pick_device(request.device, request.offload)
        pipelines.check_call(cache["pipe"], request)
        return cache["pipe"]

    patch.setattr(pipelines, "load", load)
    yield
    patch.undo()


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_prints_one_json_object(tmp_path: Path) -> None:
    output = tmp_path / "apple.png"
    printed = json.loads(run("generate", "red apple", "-o", output, "--json", *QUICK).stdout)
    assert printed.keys() >= RESULT_KEYS
    assert printed["output"] == str(output)
    assert printed["steps"] == STEPS
    assert printed["seed"] == 0
    assert printed["nfe"] == len(printed["evaluated"]) < STEPS
    assert printed["speedup"] == pytest.approx(STEPS / printed["nfe"])
    assert pixels(output).shape == (64, 64, 3)


def test_generate_takes_the_default_steps_of_the_shipped_model(tmp_path: Path) -> None:
    printed = json.loads(run("generate", "red apple", "-o", tmp_path / "a.png", "--device", "cpu", "--json").stdout)
    assert (printed["steps"], printed["nfe"]) == (50, 14)


def test_generate_takes_options_of_the_method(tmp_path: Path) -> None:
    options = ["--method", "taylor", "--option", "evaluated=[0,1,2,5]", "--option", "order=2"]
    result = run("generate", "red apple", "-o", tmp_path / "a.png", "--json", *options, *QUICK)
    assert json.loads(result.stdout)["evaluated"] == [0, 1, 2, 5]


def test_a_tolerance_chooses_the_steps_within_max_nfe(tmp_path: Path) -> None:
    options = ("--option", "tolerance=0.01", "--option", "max_nfe=7", "--steps", 12)
    report = json.loads(run("generate", "a tree", *options, "-o", tmp_path / "a.png", "--json").stdout)
    assert report["nfe"] == len(report["evaluated"]) == 7
    assert report["options"] == {"tolerance": 0.01, "max_nfe": 7}
    refused = run("generate", "a tree", "--option", "max_nfe=7", "-o", tmp_path / "b.png", code=2)
    assert "max_nfe=7 limits what tolerance chooses" in refused.output


def test_generate_says_in_words_what_was_done(tmp_path: Path) -> None:
    result = run("generate", "red apple", "-o", tmp_path / "a.webp", "--speedup", 2, "--site", "output", *QUICK)
    assert f"{STEPS} steps, 5 evaluated, 2.00x fewer" in result.stdout
    assert result.stderr == ""


def test_several_prompts_give_numbered_files(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("blue fish\n\nyellow star\n", encoding="utf-8")
    output = tmp_path / "a.png"
    result = run("generate", "red apple", "--prompts", prompts, "-o", output, "--json", *QUICK)
    printed = json.loads(result.stdout)
    assert [picture["prompt"] for picture in printed["outputs"]] == ["red apple", "blue fish", "yellow star"]
    assert [Path(picture["output"]).name for picture in printed["outputs"]] == ["a-0.png", "a-1.png", "a-2.png"]
    assert {key: printed[key] for key in RESULT_KEYS} == {key: printed["outputs"][-1][key] for key in RESULT_KEYS}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-0.png",
        "a-1.png",
        "a-2.png",
        "prompts.txt",
    ]


def test_png_holds_its_provenance(tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    prompt = "roter Apfel 🍎 日"
    run("generate", prompt, "-o", output, "--seed", 7, "--method", "paper", "--option", "degree=3", *QUICK)
    text = Image.open(output).text
    provenance = json.loads(text["spectrum"])
    assert text["prompt"] == provenance["prompt"] == prompt
    assert (provenance["seed"], provenance["model"], provenance["method"], provenance["steps"]) == (
        7,
        "tiny-flux",
        "paper",
        STEPS,
    )
    assert provenance["options"] == {"degree": 3}
    assert provenance["evaluated"][:5] == [0, 1, 2, 3, 4]
    assert provenance["versions"].keys() >= {"spectrum-diffusion", "torch", "diffusers"}


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("generate", "red apple", "-o", tmp_path / f"{name}.png", "--seed", seed, *QUICK)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def test_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("spectrum")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    output = tmp_path / "a.png"
    arguments = ["generate", "red apple", "-o", str(output), "--json", *QUICK]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(output)
    run("generate", "red apple", "-o", tmp_path / "b.png", *QUICK)
    assert np.array_equal(pixels(output), pixels(tmp_path / "b.png"))


def test_compare_draws_a_grid_and_a_table(tmp_path: Path) -> None:
    methods = "fewer-steps,taylor:order=2,evaluated=[0,1,2,6],spectrum-blend:interval=1,slope=0"
    result = run("compare", "red apple", "blue fish", "--methods", methods, "-o", tmp_path / "c", *QUICK)
    for name in ("reference", "fewer-steps", "spectrum", "PSNR", "SSIM", "NFE"):
        assert name in result.stdout
    results = json.loads((tmp_path / "c" / "results.json").read_text(encoding="utf-8"))
    reference, fewer, taylor, everything = results["methods"]
    assert (reference["nfe"], taylor["nfe"], everything["nfe"]) == (STEPS, 4, STEPS)
    assert taylor["method"] == "taylor:order=2,evaluated=[0,1,2,6]"
    assert everything["identical"] is True
    assert everything["ssim"] == pytest.approx(1)
    assert 0 < fewer["psnr"] < 100
    assert [len(row["pictures"]) for row in results["methods"]] == [2] * 4
    width, height = Image.open(tmp_path / "c" / "grid.png").size
    assert width > 4 * 256
    assert height > 2 * 256


def test_compare_leaves_videos_side_by_side(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    arguments = ["--model", "tiny-wan", "--methods", "reuse:evaluated=[0,2,4]", "-o", tmp_path, "--steps", 6]
    result = run("compare", "panda growing", *arguments, "--device", "cpu")
    assert "1 video" in result.stdout
    assert "s/video" in result.stdout
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "grid.mp4"))[0] == 13
    assert (tmp_path / "grid.png").is_file()


def test_compare_over_seeds_as_json(tmp_path: Path) -> None:
    arguments = ["--methods", "spectrum", "--seeds", "0,1", "-o", tmp_path / "c", "--json", *QUICK]
    results = json.loads(run("compare", "red apple", *arguments).stdout)
    assert [picture["seed"] for picture in results["methods"][1]["pictures"]] == [0, 1]


def test_compare_is_an_evaluation_that_counts_no_operations(tmp_path: Path) -> None:
    arguments = ["--methods", "reuse", "-o", tmp_path, "--json", *QUICK]
    first = json.loads(run("compare", "red apple", *arguments).stdout)
    assert not (tmp_path / "flops").exists()
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["runs"][0]["computed"] == 2
    again = json.loads(run("compare", "red apple", *arguments).stdout)
    assert again["methods"] == first["methods"]  # with the same times: nothing was generated again
    results = json.loads(run("evaluate", "red apple", "--metrics", "psnr", *arguments).stdout)
    assert results["computed"] == 2  # the two calls that count operations
    assert results["rows"][1]["metrics"]["psnr"]["mean"] == first["methods"][1]["psnr"]


@pytest.mark.parametrize("command", [["generate", "-o", "a.png"], ["compare", "-o", "c"], ["evaluate", "-o", "e"]])
@pytest.mark.parametrize("kind", [TypeError, torch.OutOfMemoryError])
def test_an_exception_of_the_pipeline_is_a_message(
    command: list[str], kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise kind("too much\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "_run", fail)
    result = run(*command, "red apple", *QUICK, code=2 if (command[0], kind) == ("generate", TypeError) else 1)
    said = "FluxPipeline: too much" if kind is TypeError else "the accelerator's memory is full: try --offload model"
    assert result.stderr.startswith(f"Error: {said}")


def test_a_failing_method_does_not_lose_the_others(tmp_path: Path) -> None:
    arguments = ["--methods", "spectrum:speedup=40,paper", "-o", tmp_path / "c", "--json", *QUICK]
    result = run("compare", "red apple", *arguments, code=1)
    _, failed, fine = json.loads(result.stdout)["methods"]
    assert "speedup=40" in failed["error"]
    assert failed["error"] in result.stderr
    assert fine["error"] is None
    assert fine["psnr"] > 0
    assert (tmp_path / "c" / "grid.png").is_file()


def test_without_torchmetrics_there_is_no_ssim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    result = run("compare", "red apple", "--methods", "reuse", "-o", tmp_path / "c", "--json", *QUICK)
    row = json.loads(result.stdout)["methods"][1]
    assert row["ssim"] is None
    assert row["psnr"] > 0
    assert "torchmetrics" in result.stderr


MISTAKES = {
    "no prompt": (["-o", "a.png"], "no prompt"),
    "empty prompt": ([" ", "-o", "a.png"], "prompt is empty"),
    "no output": (["apple"], "--output"),
    "extension": (["apple", "-o", "a.bmp"], ".png"),
    "placeholder": (["apple", "-o", "{steps}.png"], "unknown placeholder {steps}: use {prompt}, {seed}, {index}"),
    "no extension": (["apple", "-o", "a"], "extension"),
    "output is a folder": (["apple", "-o", "folder.png"], "is a folder"),
    "no such folder": (["apple", "-o", "none/a.png"], "no folder"),
    "folder is a file": (["apple", "-o", "file/a.png"], "no folder"),
    "zero steps": (["apple", "-o", "a.png", "--steps", "0"], "--steps 0"),
    "negative steps": (["apple", "-o", "a.png", "--steps", "-3"], "--steps -3"),
    "steps no number": (["apple", "-o", "a.png", "--steps", "many"], "integer"),
    "seed": (["apple", "-o", "a.png", "--seed", "-1"], "--seed -1"),
    "guidance": (["apple", "-o", "a.png", "--guidance", "nan"], "--guidance nan"),
    "size word": (["apple", "-o", "a.png", "--size", "big"], "--size 'big'"),
    "size zero": (["apple", "-o", "a.png", "--size", "0x64"], "--size '0x64'"),
    "size odd": (["apple", "-o", "a.png", "--size", "65"], "multiples of"),
    "device": (["apple", "-o", "a.png", "--device", "gpu"], "--device 'gpu'"),
    "dtype": (["apple", "-o", "a.png", "--dtype", "int8"], "--dtype 'int8'"),
    "offload": (["apple", "-o", "a.png", "--offload", "disk"], "--offload 'disk'"),
    "offload on the cpu": (["apple", "-o", "a.png", "--device", "cpu", "--offload", "model"], "leave it out"),
    "method": (["apple", "-o", "a.png", "--method", "spektrum"], "did you mean 'spectrum'"),
    "option": (["apple", "-o", "a.png", "--method", "paper", "--option", "degre=3"], "did you mean 'degree'"),
    "options beside the method": (
        ["apple", "-o", "a.png", "--method", "spectrum:warmup=2:gain=1"],
        "write --method spectrum --option warmup=2 --option gain=1",
    ),
    "option without value": (["apple", "-o", "a.png", "--option", "degree"], "name=value"),
    "option value": (["apple", "-o", "a.png", "--option", "warmup=0"], "warmup=0"),
    "site": (["apple", "-o", "a.png", "--site", "middle"], "site='middle'"),
    "speedup": (["apple", "-o", "a.png", "--speedup", "0.5"], "speedup=0.5"),
    "speedup for the steps": (["apple", "-o", "a.png", "--speedup", "9", "--steps", "10"], "10 steps"),
    "speedup for the default steps": (["apple", "-o", "a.png", "--speedup", "20"], "50 steps"),
    "model name": (["apple", "-o", "a.png", "--model", "tiny-fluxx"], "(did you mean 'tiny-flux'?)"),
    "model folder": (["apple", "-o", "a.png", "--model", "./none"], "'./none' does not exist"),
    "folder with the name of a model": (["apple", "-o", "a.png", "--model", "tiny-wan"], "model_index.json"),
    "model without index": (["apple", "-o", "a.png", "--model", "folder.png"], "model_index.json"),
    "prompt file": (["-o", "a.png", "--prompts", "none.txt"], "none.txt"),
    "frames of an image": (["apple", "-o", "a.png", "--frames", "3"], "--frames"),
    "video of an image": (["apple", "-o", "a.mp4"], "images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "tiny-wan").mkdir()
    (tmp_path / "file").touch()
    result = run("generate", *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "tiny-wan"]


def test_tune_writes_plans_that_generate_and_compare_take(tmp_path: Path) -> None:
    plan, picture = tmp_path / "plan.json", tmp_path / "a.png"
    result = run("tune", "red apple", "--method", "teacache", "--nfe", "6,4", "-o", plan, "--json", *QUICK)
    printed = json.loads(result.stdout)
    assert [Path(tuned["output"]).name for tuned in printed["plans"]] == ["plan-6.json", "plan-4.json"]
    assert (printed["nfe"], printed["steps"], printed["method"]) == (4, STEPS, "teacache")
    written = json.loads((tmp_path / "plan-6.json").read_text(encoding="utf-8"))
    assert written.items() <= printed["plans"][0].items()
    assert written["provenance"].keys() == {"command", "pipeline", "prompts", "seeds", "call"}
    generated = json.loads(
        run("generate", "red apple", "--plan", tmp_path / "plan-6.json", "-o", picture, "--json", *QUICK).stdout
    )
    assert (generated["nfe"], generated["method"], generated["options"]) == (6, "teacache", written["options"])
    assert json.loads(Image.open(picture).text["spectrum"])["options"] == written["options"]
    methods = f"plan:{tmp_path / 'plan-6.json'},plan:{tmp_path / 'plan-4.json'}:threshold=0,first-block-cache"
    run("compare", "red apple", "--methods", methods, "-o", tmp_path / "c", *QUICK)
    rows = json.loads((tmp_path / "c" / "results.json").read_text(encoding="utf-8"))["methods"]
    assert [row["nfe"] for row in rows[:3]] == [STEPS, 6, STEPS]
    assert rows[1]["method"] == f"plan:{tmp_path / 'plan-6.json'}"


def test_tune_makes_plans_of_weights_and_goes_on(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    effort = ["--pairs", 2, "--held-out", 1, "--runs", 2, "--budget", "10m"]
    result = run("tune", "--nfe", "5,4", "-o", plan, *effort, *QUICK)
    assert f"4 of {STEPS} steps evaluated; mean " in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan-4.json", "plan-5.json", "plan.tune"]
    first = json.loads((tmp_path / "plan-4.json").read_text(encoding="utf-8"))
    assert first["provenance"].keys() == {"command", "pipeline", "fitted", "held_out", "call"}
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "plan.tune").iterdir()}
    run("tune", "--nfe", "5,4", "-o", plan, *effort, *QUICK)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "plan.tune").iterdir()} == kept
    again = json.loads((tmp_path / "plan-4.json").read_text(encoding="utf-8"))
    assert again == first
    run("generate", "red apple", "--plan", tmp_path / "plan-4.json", "-o", tmp_path / "a.png", *QUICK)
    for wrong, message in (("--budget=soon", "is not a time"), ("--runs=0", "runs=0 is out of range")):
        assert message in run("tune", wrong, "-o", plan, *QUICK, code=2).stderr


def test_tune_says_in_words_what_was_reached(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    result = run("tune", "red apple", "--method", "first-block-cache", "--nfe", 5, "-o", plan, *QUICK)
    assert f"first-block-cache threshold 0.{result.stdout.partition('threshold 0.')[2][:1]}" in result.stdout
    assert f"5 of {STEPS} steps evaluated, 5 wanted" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


TUNE_MISTAKES: list[tuple[list[str], str]] = [
    (["apple", "--method", "fora"], "fora has no threshold to tune: tune one of teacache"),
    (["apple", "--method", "teacash"], "did you mean 'teacache'"),
    (["apple", "--method", "teacache", "--nfe", "few"], "--nfe 'few' is not a list of positive integers"),
    (["apple", "--method", "teacache", "--nfe", "0"], "--nfe '0' is not a list of positive integers"),
    (
        ["apple", "--method", "teacache", "--nfe", "5,1"],
        "nfe=1 is out of reach of teacache, which evaluates 2 … 10",
    ),
    (["apple", "--method", "teacache", "--option", "threshold=1"], "threshold is what tune determines"),
    (["apple", "--method", "teacache", "--option", "limit=1"], "teacache has no option 'limit'"),
    (["--method", "teacache"], "there is no prompt"),
    (["apple", "--method", "teacache", "-o", "plan.txt"], "end it with .json"),
    (["apple", "--method", "teacache", "-o", "nowhere/plan.json"], "can't be written"),
]


@pytest.mark.parametrize(("arguments", "message"), TUNE_MISTAKES)
def test_mistakes_of_tune(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("tune", "-o", "plan.json", *arguments, *QUICK, code=2)
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_plan_beside_another_method_and_one_that_is_none(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        '{"method": "easycache", "options": {}, "model": "FluxTransformer2DModel-57x3072"}', encoding="utf-8"
    )
    for arguments, message in (
        (["--plan", plan, "--method", "fora"], "method='fora' contradicts the plan"),
        (["--plan", plan, "--method", "spectrum"], "method='spectrum' contradicts the plan, which is for easycache"),
        (
            ["--plan", plan],
            "FluxTransformer2DModel-57x3072, but this denoiser is FluxTransformer2DModel-6x160",
        ),
        (["--plan", plan, "--option", "order=2"], "easycache has no option 'order'"),
        (["--plan", tmp_path / "none.json"], "cannot be read"),
    ):
        result = run("generate", "red apple", "-o", tmp_path / "a.png", *arguments, *QUICK, code=2)
        assert message in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "spectrum,nothing"], "nothing"),
        (["--methods", "plan:none.json"], "plan='none.json' cannot be read"),
        (["--methods", "order=2"], "where a method's name belongs"),
        (["--methods", "paper,paper"], "twice"),
        (["--seeds", "0,x"], "--seeds"),
        (["-o", "file"], "is a file"),
        (["--prompts", "none.txt"], "none.txt"),
    ],
)
def test_mistakes_of_compare(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = run("compare", "apple", "-o", "out", *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_folder_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    result = run("generate", "apple", "-o", tmp_path / "a.png", "--model", tmp_path, "--device", "cpu", code=2)
    assert "cannot be read" in result.stderr


def test_a_failure_while_sampling_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the weights are gone\nand more")

    monkeypatch.setattr(sampling, "_run", fail)
    result = run("generate", "red apple", "-o", tmp_path / "a.png", *QUICK, code=1)
    assert result.stderr.strip() == "Error: the weights are gone"
    assert list(tmp_path.iterdir()) == []


def test_methods_as_json_and_table() -> None:
    methods = json.loads(run("methods", "--json").stdout)["methods"]
    assert [method["name"] for method in methods] == list(METHODS)
    paper = next(method for method in methods if method["name"] == "paper")
    assert paper["options"]["degree"] == 4
    assert all(method["idea"] for method in methods)
    assert "fewer-steps" in run("methods").stdout


@pytest.mark.parametrize("name", list(METHODS))
def test_each_method_has_a_page(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    page = json.loads(run("methods", name, "--json").stdout)
    options = {option["name"]: option for option in page["options"]}
    assert {name: option["default"] for name, option in options.items()} == json.loads(
        json.dumps(METHODS[name].defaults())
    )
    assert page["idea"]
    assert page["source"]
    shown = run("methods", name).stdout
    assert page["example"] in shown
    assert all(option in shown for option in options)


def test_the_page_of_a_method_says_what_its_options_may_be() -> None:
    options = {option["name"]: option for option in catalog.method_page("spectrum-blend")["options"]}
    assert options["degree"]["range"] == "integer, 0 … 1000"
    assert options["blend"]["range"] == "number, 0 … 1"
    assert options["time"]["range"] == "index, sigma, log-snr"
    assert options["ridge"]["meaning"].startswith("λ")
    assert "did you mean 'spectrum'" in run("methods", "spectrun", code=2).output


def test_models_as_json_and_table() -> None:
    models = json.loads(run("models", "--json").stdout)
    assert "tiny-flux" in models["shipped"]
    rows = {row["class"]: row for row in models["denoisers"]}
    assert rows["FluxTransformer2DModel"]["tail"] == list(DENOISERS["FluxTransformer2DModel"].tail)
    assert all(row["blocks"] or row["reason"] for row in rows.values())
    assert "FluxTransformer2DModel" in run("models").stdout


def test_doctor_as_json_and_table() -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["healthy"] is True
    assert {package["name"] for package in report["packages"]} >= {"torch", "diffusers", "torchmetrics"}
    assert report["devices"][-1]["device"] == "cpu"
    assert "torch" in run("doctor").stdout


def test_doctor_tells_missing_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (
        doctor.Package("no-such-package", "no_such_package", "nothing", "pip install it"),
        doctor.Package("numpy", "numpy.no_such_module", "all"),
    )
    monkeypatch.setattr(doctor, "PACKAGES", wanted)
    report = json.loads(run("doctor", "--json", code=1).stdout)
    missing, broken = report["packages"]
    assert (missing["state"], missing["install"]) == ("missing", "pip install it")
    assert broken["state"] == "broken"
    assert "no_such_module" in broken["problem"]


def test_parse_methods() -> None:
    specs = parse_methods("a, taylor:order=2,evaluated=[0,1],b:site=output", {"speedup": 3})
    assert [spec.name for spec in specs] == ["a", "taylor", "b"]
    assert specs[1].options == {"speedup": 3, "order": 2, "evaluated": [0, 1]}
    assert specs[2].label == "b:speedup=3,site=output"


def test_parse_values() -> None:
    assert parse_options(["ridge=0.5", "site=output"]) == {"ridge": 0.5, "site": "output"}
    assert parse_size("96x64") == (96, 64)
    assert parse_size("64") == (64, 64)
    assert parse_size(None) is None


def test_names_of_files() -> None:
    assert paths_for(Path("a.png"), ["x"], 0) == [Path("a.png")]
    assert paths_for(Path("a.png"), ["x", "y"], 0) == [Path("a-0.png"), Path("a-1.png")]
    assert paths_for(Path("x/{index}.png"), ["x", "y"], 0) == [Path("x/0.png"), Path("x/1.png")]
    assert paths_for(Path("x/{prompt}-{seed}.png"), ["red apple", "A{seed}"], 7) == [
        Path("x/red-apple-7.png"),
        Path("x/A-seed-7.png"),
    ]
    assert [path.name for path in paths_for(Path("{prompt}.png"), ["A b", "a/b"], 0)] == ["A-b-0.png", "a-b-1.png"]


@pytest.mark.parametrize("prompt", ["../../up", "/etc/passwd", "..", "a\\b", "日本 " * 60, ".", "\0", "a:b?*"])
def test_a_prompt_in_a_name_stays_in_the_folder(prompt: str, tmp_path: Path) -> None:
    (path,) = paths_for(tmp_path / "{prompt}.png", [prompt], 0)
    path.touch()
    assert list(tmp_path.iterdir()) == [path]
    assert not set(path.stem) & set('./\\:?*"<>|')


def _write_half(path: Path) -> None:
    with written(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


def test_write_atomically_keeps_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(StoreError, match="full"):
        _write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_frames_become_a_video(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    save(path, [Image.new("RGB", (64, 48), (20 * i, 0, 0)) for i in range(5)], {}, fps=5)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert (frames, list(tmp_path.iterdir())) == (5, [path])
    assert seconds == pytest.approx(1, abs=0.3)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(MistakeError, match="is not there"):
        pipelines.pick_device("cuda:99")


PROMPT_FILES = {
    "a.csv": "prompt,category\nred apple,fruit\nblue fish,animal\n",
    "a.json": '["red apple", {"prompt": "blue fish"}]',
    "a.jsonl": '{"prompt": "red apple"}\n{"text": "blue fish"}\n',
    "a.txt": "red apple\nblue fish\n",
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_every_command_reads_prompt_files_of_every_format(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(PROMPT_FILES[name], encoding="utf-8")
    for command in (
        ["generate", "-o", tmp_path / "{index}.png"],
        ["compare", "-o", tmp_path / "c", "--methods", "reuse"],
        ["tune", "-o", tmp_path / "plan.json", "--method", "first-block-cache", "--nfe", 3],
    ):
        printed = json.loads(run(*command, "--prompts", file, "--steps", 4, "--device", "cpu", "--json").stdout)
        prompts = printed["provenance"]["prompts"] if command[0] == "tune" else printed.get("prompts")
        outputs = [output["prompt"] for output in printed.get("outputs", ())]
        assert (outputs or prompts) == ["red apple", "blue fish"], command[0]


def test_prompts_come_from_stdin_and_from_known_lists(tmp_path: Path) -> None:
    arguments = ["generate", "-o", str(tmp_path / "a.png"), "--steps", "2", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--prompts", "-"], input="red apple\n\nblue fish\n")
    assert [output["prompt"] for output in json.loads(result.stdout)["outputs"]] == ["red apple", "blue fish"]
    assert read_prompts(["x"], "tiny", "tiny-flux")[1:] == tuple(prompt.text for prompt in load_prompts("tiny"))
    result = CliRunner().invoke(app, [*arguments, "--prompts", "-"], input="\n")
    assert (result.exit_code, "stdin holds no prompt" in result.stderr) == (2, True)


def test_a_warning_about_every_image_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\nblue fish\n", encoding="utf-8")
    arguments = ["--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "out", "--steps", 4, "--device", "cpu"]
    shown = run("generate", *arguments)
    assert shown.stderr.count("a run of 4 steps is evaluated whole") == 1
    assert "with 1 worker, " in shown.stdout


def test_one_prompt_gives_the_same_json_shape_as_several(tmp_path: Path) -> None:
    printed = json.loads(run("generate", "red apple", "-o", tmp_path / "a.png", "--json", *QUICK).stdout)
    outputs = printed.pop("outputs")
    assert outputs == [printed]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--option", "interval=2", "--option", "interval=3"],
            "option interval is given twice, as 2 and 3",
        ),
        (["--speedup", "3", "--option", "speedup=4"], "--speedup 3.0 and --option speedup=4 set the same option"),
        (["--site", "output", "--option", "site=module"], "--site output and --option site=module set the same option"),
        (["--option", "warmup=2:slope=2"], "separate them with commas, as in warmup=2,slope=2"),
    ],
)
def test_an_option_that_is_given_twice_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("generate", "apple", "-o", tmp_path / "a.png", *arguments, code=2)
    assert message in " ".join(result.stderr.split())


def test_the_methods_of_a_list_separate_options_with_commas() -> None:
    for text, message in (
        ("spectrum:warmup=2:slope=2", "separate them with commas, as in warmup=2,slope=2"),
        ("spectrum:warmup=2,warmup=3", "option warmup is given twice"),
    ):
        with pytest.raises(MistakeError, match=message):
            parse_methods(text, {})
    assert parse_methods("spectrum:speedup=2", {"speedup": 3})[0].options == {"speedup": 2}


def test_small_models_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = loading.ASSETS.parents[2] / "models"
    if not (models / "tiny-sdxl").is_dir():
        pytest.skip("the small models are not in this checkout")
    monkeypatch.setattr(loading, "CHECKOUT_MODELS", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "red apple", "-o", "a.png", "--model", "tiny-sdxl", "--steps", 2, "--device", "cpu"]
    refused = run(*arguments, code=2).stderr
    assert "choose one of tiny-flux (a clone of the repository has more of them), or write" in refused
    (tmp_path / "models").symlink_to(models)
    run(*arguments)
    assert pixels(tmp_path / "a.png").ndim == 3
    assert type(loading.load_pipeline("tiny-sdxl")).__name__ == "StableDiffusionXLPipeline"
    assert "tiny-sdxl" in json.loads(run("models", "--json").stdout)["shipped"]


def test_the_shipped_model_wins_over_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-flux", "tiny-mine"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_index.json").write_text("{}", encoding="utf-8")
    named = loading.named_models()
    assert named["tiny-flux"] == loading.ASSETS / "tiny-flux"
    assert named["tiny-mine"] == tmp_path / "models" / "tiny-mine"


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_videos_become_animations(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(5)], {}, fps=5)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (5, (64, 48), 0)
        image.seek(1)
        image.load()
        assert image.info["duration"] == 200


def test_an_image_becomes_a_gif_of_one_frame(tmp_path: Path) -> None:
    run("generate", "red apple", "-o", tmp_path / "{prompt}.gif", *QUICK)
    with Image.open(tmp_path / "red-apple.gif") as image:
        assert image.n_frames == 1


def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    result = run("generate", "red apple", "-o", tmp_path / "a.png", *QUICK, code=1)
    assert f"{tmp_path / 'a.png'} can't be written (No space left on device): free some space" in " ".join(
        result.stderr.split()
    )


def test_fewer_steps_has_one_speedup(tmp_path: Path) -> None:
    arguments = ["generate", "red apple", "-o", tmp_path / "a.png", "--method", "fewer-steps", "--json", *QUICK]
    printed = json.loads(run(*arguments).stdout)
    rows = json.loads(
        run("compare", "red apple", "--methods", "fewer-steps", "-o", tmp_path / "c", "--json", *QUICK).stdout
    )
    assert printed["nfe"] == rows["methods"][1]["nfe"] < STEPS
    assert printed["steps"] == STEPS
    assert printed["speedup"] == rows["methods"][1]["speedup"] == STEPS / printed["nfe"]


def test_a_shared_speedup_leaves_adaptive_methods_out(tmp_path: Path) -> None:
    arguments = ["--speedup", 2, "-o", tmp_path / "c", "--json", *QUICK]
    result = run("compare", "red apple", "--methods", "teacache,fora", *arguments)
    assert [row["method"] for row in json.loads(result.stdout)["methods"]] == ["reference", "fora:speedup=2.0"]
    assert "teacache decides at run time and has no speedup: left out" in result.stderr
    result = run("compare", "red apple", "--methods", "teacache", *arguments, code=2)
    assert "--speedup fits none of the methods" in result.stderr


@pytest.mark.parametrize("command", [["generate", "-o", "a.gif"], ["compare", "-o", "c"], ["evaluate", "-o", "e"]])
def test_a_number_of_frames_that_the_model_would_round_is_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["panda growing", "--model", loading.named_models()["tiny-wan"], "--device", "cpu", "--frames", 32]
    result = run(*command, *arguments, code=2)
    message = "--frames 32 does not fit WanPipeline: the number must be 1 more than a multiple of 4, such as 29 or 33"
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("default", "factor", "frames", "fits"),
    [(13, 4, 9, True), (13, 4, 8, False), (13, 4, 1, True), (88, 4, 40, True), (None, 4, 8, True), (16, None, 7, True)],
)
def test_which_numbers_of_frames_fit(default: int | None, factor: int | None, frames: int, fits: bool) -> None:
    class Videos:
        vae_temporal_compression_ratio = factor

        def __call__(self, num_frames: int | None = default) -> None: ...

    with contextlib.nullcontext() if fits else pytest.raises(MistakeError, match="such as 5 or 9"):
        pipelines.check_arguments(Videos(), {"num_frames": frames})


def test_another_number_of_frames_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "TEMPORAL_FACTORS", ())  # as of a pipeline whose rule is not known
    arguments = ["--model", "tiny-wan", "-o", tmp_path / "a.gif", "--steps", 2, "--device", "cpu", "--frames"]
    result = run("generate", "panda growing", *arguments, 8)
    with Image.open(tmp_path / "a.gif") as video:
        assert video.n_frames == 9
    assert "a.gif has 9 frames, not 8" in " ".join(result.stderr.split())
    assert "frames, not" not in run("generate", "panda growing", *arguments, 9).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_video_that_ffmpeg_did_not_finish_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "a.mp4").symlink_to("/dev/full")
    with pytest.raises(OSError, match="no complete video"):
        mp4.write(tmp_path / "a.mp4", [Image.new("RGB", (64, 48))] * 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_stdout_is_told_in_words() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "spectrum_diffusion", "methods", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the output cannot be written, since the disk is full: free some space")


@pytest.mark.parametrize("columns", [30, 50, 80])
def test_tables_lose_nothing_in_a_narrow_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    methods = "reuse,paper:warmup=2,slope=0.41"
    shown = run("compare", "red apple", "--methods", methods, "-o", tmp_path, *QUICK).stdout
    assert max(map(len, shown.splitlines()[:-1])) <= columns
    assert "…" not in shown
    for text in ("reference", "reuse", "slope=0", "x fewer", "0.9"):
        assert text in shown, text
    for command, word in (("doctor", "torch"), ("models", "FluxTransformer2DModel"), ("methods", "works on")):
        shown = run(command).stdout
        assert max(map(len, shown.splitlines())) <= columns
        assert "…" not in shown
        assert word in shown


def test_the_page_of_a_method_breaks_no_word_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    words = run("methods", "taylorseer").stdout.split()
    assert {"last_block,", "evaluations;", "replaced."} <= set(words), words


@pytest.mark.parametrize(
    "command", ["", *(command.name or "" for command in typer.main.get_group(app).commands.values())]
)
def test_help_cuts_no_word_at_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(columns: int) -> set[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        return set(run(*command.split(), "--help").stdout.replace("│", " ").split())

    assert {word for word in words(400) - words(80) if "─" not in word} == set()


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["generate", "x", "-o", "a.png", "--site", "outptu"], "output"),
        (["generate", "x", "-o", "a.png", "--dtype", "bfloat61"], "bfloat16"),
        (["generate", "x", "-o", "a.png", "--offload", "modle"], "model"),
        (["generate", "x", "-o", "a.png", "--method", "paper", "--option", "time=sigmma"], "sigma"),
        (["compare", "x", "-o", "out", "--methods", "papre"], "paper"),
        (["evaluate", "x", "-o", "out", "--metrics", "psrn"], "psnr"),
        (["reproduce", "tabel2", "-o", "out"], "table2"),
        (["reproduce", "table2", "-o", "out", "--model", "rael"], "real"),
        (["reproduce", "table2", "-o", "out", "--only", "hunyaun"], "hunyuan"),
        (["tune", "-o", "plan.json", "--strategy", "budchache"], "budcache"),
        (["bench", "--arch", "sd35-lage"], "sd35-large"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_each_choice_suggests_the_nearest(
    arguments: list[str], nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"is unknown (did you mean '{nearest}'?): choose one of " in run(*arguments, code=2).stderr
    assert list(tmp_path.iterdir()) == []
