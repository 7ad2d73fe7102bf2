"""Many prompts into a folder: one file for each prompt and seed, whatever is killed, full or repeated."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import ENVIRONMENT, QUICK, command, files, finish, prompt_file, start, until
from PIL import Image
from typer.testing import CliRunner

from spectrum_diffusion import load_default_pipeline
from spectrum_diffusion.bench.batch import Generator, Job, Outcome, Plan, Report
from spectrum_diffusion.bench.batch.plan import BLOCK, BLOCKS, MANIFEST, STALE, contents_digest
from spectrum_diffusion.bench.evaluate.request import Row
from spectrum_diffusion.cli import app, batch, pipelines
from spectrum_diffusion.cli.request import MethodSpec, SamplingRequest


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def generate(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the command in this process, with a pipeline that is loaded once."""
    monkeypatch.setattr(pipelines, "load", lambda request: pipe)

    def run(prompts: Path, out: Path, *arguments: str, code: int = 0) -> Any:
        line = ["generate", "--prompts", str(prompts), "-o", str(out), "--json", *QUICK, *arguments]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == code, result.output + repr(result.exception)
        return json.loads(result.stdout) if result.stdout else result.stderr

    return run


def written_by(pipe: Any, folder: Path) -> Job:
    def save(path: Path, frames: list[Image.Image], facts: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        frames[0].save(path)

    call = {"num_inference_steps": 10}
    return Job(
        load=lambda: pipe,
        save=save,
        provenance=lambda item, sample: {},
        row=Row("spectrum"),
        call=call,
        settings=call,
        folder=folder,
    )


def test_each_prompt_and_seed_has_one_file(generate: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt\nred apple\npanda\nred apple\n../a/b c\n", encoding="utf-8")
    out = tmp_path / "out"
    report = generate(prompts, out, "--seeds", "0,7,0")
    assert (report["wanted"], report["generated"], report["existed"], report["missing"]) == (6, 6, 0, 0)
    listed = [json.loads(line) for line in (out / MANIFEST).read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["seed"]) for row in listed] == [
        (prompt, seed) for prompt in ("red apple", "panda", "../a/b c") for seed in (0, 7)
    ]
    assert sorted(str(path.relative_to(out)) for path in files(out)) == sorted(row["file"] for row in listed)
    assert report["nfe_per_image"] == report["nfe_per_image"] // 1 > 0


def test_a_file_is_that_of_a_single_call_byte_for_byte(generate: Any, tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path, 1)
    generate(prompts, tmp_path / "out", "--seeds", "7")
    (batch,) = files(tmp_path / "out")
    CliRunner().invoke(app, ["generate", "red apple 0", "-o", str(tmp_path / "a.png"), "--seed", "7", *QUICK])
    assert batch.read_bytes() == (tmp_path / "a.png").read_bytes()


def test_the_same_command_makes_what_is_missing_only(generate: Any, tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, 4), tmp_path / "out"
    generate(prompts, out)
    first = files(out)
    times = {path: path.stat().st_mtime_ns for path in first}
    first[2].unlink()
    report = generate(prompts, out)
    assert (report["existed"], report["generated"]) == (3, 1)
    assert files(out) == first
    assert [path for path in first if path.stat().st_mtime_ns != times[path]] == [first[2]]
    assert generate(prompts, out)["generated"] == 0


@pytest.mark.parametrize("change", [("--speedup", "2"), ("--steps", "9"), ("--guidance", "2"), ("--method", "taylor")])
def test_other_settings_are_other_files(generate: Any, tmp_path: Path, change: tuple[str, ...]) -> None:
    prompts, out = prompt_file(tmp_path, 1), tmp_path / "out"
    generate(prompts, out)
    assert generate(prompts, out, *change)["generated"] == 1
    assert len(files(out)) == 2


def test_files_of_other_prompts_stay_and_are_told(generate: Any, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    generate(prompt_file(tmp_path, 2), out)
    (tmp_path / "other.txt").write_text("panda\nred apple 1\n", encoding="utf-8")
    line = ["generate", "--prompts", str(tmp_path / "other.txt"), "-o", str(out), *QUICK]
    result = CliRunner().invoke(app, line)
    assert "1 generated, 1 existed, 0 missing of 2" in result.stdout
    assert f"{out} also has 1 file of other prompts or settings" in result.stderr
    assert len(files(out)) == 3
    assert len((out / MANIFEST).read_text(encoding="utf-8").splitlines()) == 2


def test_other_files_of_a_model_are_another_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "weights.bin").write_bytes(b"12")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights.bin").write_bytes(b"12")
    before = contents_digest(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "note.json").write_text("downloaded today", encoding="utf-8")
    assert contents_digest(tmp_path) == before
    (tmp_path / "weights.bin").write_bytes(b"13")  # trained further, so of the same size
    assert contents_digest(tmp_path) != before
    (tmp_path / "weights.bin").write_bytes(b"12")
    (tmp_path / "unet" / "weights.bin").write_bytes(b"123")
    assert contents_digest(tmp_path) != before


def test_large_weights_are_sampled_from_end_to_end(tmp_path: Path) -> None:
    weights = bytearray(2 * BLOCK * BLOCKS)
    (tmp_path / "weights.bin").write_bytes(weights)
    before = contents_digest(tmp_path / "weights.bin")
    for place in (0, len(weights) - 1):
        changed = weights.copy()
        changed[place] = 1
        (tmp_path / "weights.bin").write_bytes(changed)
        assert contents_digest(tmp_path / "weights.bin") != before
    changed = bytearray(byte ^ 1 if place % 16 == 0 else byte for place, byte in enumerate(weights))
    (tmp_path / "weights.bin").write_bytes(changed)
    assert contents_digest(tmp_path / "weights.bin") != before


def test_another_lora_under_the_same_name_is_another_job(tmp_path: Path) -> None:
    lora = tmp_path / "style.safetensors"

    def settings(text: str) -> Any:
        return batch._settings(SamplingRequest(prompts=("x",), lora=(text,)), MethodSpec("spectrum"), None)

    lora.write_bytes(b"first")
    first = settings(f"{lora}:0.5")
    assert settings(f"{lora}:0.5") == first
    assert settings(f"{lora}:0.6") != first
    lora.rename(tmp_path / "moved.safetensors")
    assert settings(f"{tmp_path / 'moved.safetensors'}:0.5") == first
    lora.write_bytes(b"other")
    assert settings(f"{lora}:0.5") != first


def test_unfinished_files_of_dead_processes_are_removed_and_those_of_others_stay(pipe: Any, tmp_path: Path) -> None:
    job = written_by(pipe, tmp_path)
    (item,) = Plan.of(job, ["red apple"], [0]).items
    shard = (tmp_path / item.file).parent
    shard.mkdir()
    old, fresh = shard / ".a.01234567.tmp.png", shard / ".b.01234567.tmp.png"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    assert Plan.of(job, ["red apple"], [0]).missing == [item]
    assert (old.exists(), fresh.exists()) == (False, True)


def test_processes_share_the_items_of_the_whole_job(pipe: Any, tmp_path: Path) -> None:
    job, prompts = written_by(pipe, tmp_path), [f"prompt {i}" for i in range(11)]
    shares = [Plan.of(job, prompts, [0, 1], rank, 3).items for rank in range(3)]
    assert sorted(len(share) for share in shares) == [7, 7, 8]
    together = {item for share in shares for item in share}
    assert together == set(Plan.of(job, prompts, [0, 1]).items)
    assert len(together) == 22


@pytest.fixture
def hooked(pipe: Any) -> Iterator[Callable[[Callable[..., Any]], None]]:
    handles = []
    yield lambda hook: handles.append(pipe.transformer.register_forward_hook(hook))
    for handle in handles:
        handle.remove()


def outcomes(pipe: Any, folder: Path, count: int) -> list[Outcome]:
    job = written_by(pipe, folder)
    generator = Generator(job)
    return [generator(item) for item in Plan.of(job, [f"prompt {i}" for i in range(count)], [0]).items]


def test_a_failure_is_tried_again_and_then_counted_by_its_reason(pipe: Any, tmp_path: Path, hooked: Any) -> None:
    calls = [0]

    def fail(module: Any, inputs: Any, output: Any) -> None:
        if calls[0] in (1, 2, 3):  # both attempts at the first item, and one at the second
            raise torch.OutOfMemoryError("no memory is left")

    original = type(pipe).encode_prompt

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return original(self, *arguments, **options)

    hooked(fail)
    pipe.encode_prompt = counted.__get__(pipe)
    try:
        first, second, third = outcomes(pipe, tmp_path, 3)
    finally:
        del pipe.encode_prompt
    assert (first.reason, first.detail) == ("OutOfMemoryError", "no memory is left")
    assert second.reason == ""  # its second attempt
    assert third.reason == ""
    assert calls[0] == 5
    assert len(files(tmp_path)) == 2


def test_numbers_that_are_not_finite_are_no_image(pipe: Any, tmp_path: Path, hooked: Any) -> None:
    hooked(lambda module, inputs, output: tuple(tensor * float("nan") for tensor in output))
    (outcome,) = outcomes(pipe, tmp_path, 1)
    assert outcome.reason == "not finite"
    assert not files(tmp_path)


def test_the_report_counts_by_reason_and_tells_the_cost() -> None:
    report = Report(wanted=6, existed=1, price=3.6)
    report.workers = 2
    for outcome in (
        Outcome("a", seconds=1.0, steps=50, nfe=14),
        Outcome("a", seconds=1.0, steps=50, nfe=14),  # told twice
        Outcome("b", seconds=3.0, steps=50, nfe=10),
        Outcome("c", existed=True),
        Outcome("d", reason="OutOfMemoryError", detail="full"),
    ):
        report.add(outcome)
    report.seconds = 10.0
    facts = report.to_dict()
    assert (facts["generated"], facts["existed"], facts["missing"]) == (2, 2, 2)
    assert facts["failures"] == {"OutOfMemoryError": 1}
    assert (facts["seconds_per_image"], facts["nfe_per_image"]) == (2.0, 12.0)
    assert facts["images_per_hour"] == 720.0
    assert facts["cost_per_image"] == pytest.approx(2 * 10 * 0.001 / 2)
    assert "1 failed: OutOfMemoryError: full" in report.lines()


def test_a_killed_process_leaves_whole_files_and_the_next_makes_the_rest(tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, 12), tmp_path / "out"
    process = start(command(prompts, out))
    until(lambda: len(files(out)) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in files(out)}
    assert 3 <= len(kept) < 12
    report = finish(start(command(prompts, out)))
    assert (report["existed"], report["generated"]) == (len(kept), 12 - len(kept))
    assert len(files(out)) == 12
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_full_disk_stops_the_job_and_the_next_finishes_it(tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, 4), tmp_path / "out"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the manifest is smaller, an image is larger

    process = start(command(prompts, out), preexec_fn=fill)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 1
    report = json.loads(stdout)
    assert report["failures"] == {"not written": 1}  # and nothing was generated for the others
    assert "4 of 4 files are missing: run the same command again" in stderr
    assert not files(out)
    assert finish(start(command(prompts, out)))["generated"] == 4
    assert len(files(out)) == 4


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29613"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_of_a_launcher_split_the_job(launcher: str, tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path, 7), tmp_path / "out"
    module = command(prompts, out)[1:]
    process = start([sys.executable, *LAUNCHERS[launcher], *module], env=ENVIRONMENT)
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    reports = [json.loads(line) for line in stdout.replace("}{", "}\n{").splitlines() if line.startswith("{")]
    assert sorted(report["generated"] for report in reports) == [3, 4]
    assert len(files(out)) == 7
    assert len((out / MANIFEST).read_text(encoding="utf-8").splitlines()) == 7


@pytest.mark.parametrize(
    "share", [{"WORLD_SIZE": "2"}, {"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"}]
)
def test_variables_of_a_launcher_that_are_no_share_are_refused(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: dict[str, str]
) -> None:
    for name, value in share.items():
        monkeypatch.setenv(name, value)
    message = generate(prompt_file(tmp_path, 2), tmp_path / "out", code=2)
    assert "which is no share of a job: set RANK" in message
    assert not (tmp_path / "out").exists()


def test_a_launcher_and_ray_do_not_mix(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    message = generate(prompt_file(tmp_path, 1), tmp_path / "out", "--ray", "local", code=2)
    assert "--ray local starts processes of its own, but this is process 0 of 2" in message


@pytest.mark.parametrize("extra", [("--seeds", "0,1"), ("--ray", "local"), ("--format", "jpg"), ("--price", "1")])
def test_what_fills_a_folder_needs_a_folder(generate: Any, tmp_path: Path, extra: tuple[str, str]) -> None:
    message = generate(prompt_file(tmp_path, 1), tmp_path / "a.png", *extra, code=2)
    assert "give --prompts and a folder" in message


def test_files_have_the_wanted_format(generate: Any, tmp_path: Path) -> None:
    generate(prompt_file(tmp_path, 1), tmp_path / "out", "--format", "webp")
    (path,) = tmp_path.glob("out/??/*.webp")
    assert Image.open(path).format == "WEBP"
    assert "no known extension" in generate(prompt_file(tmp_path, 1), tmp_path / "out", "--format", "doc", code=2)


def test_ray_is_named_where_it_is_missing(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = generate(prompt_file(tmp_path, 1), tmp_path / "out", "--ray", "local", code=2)
    assert "pip install 'spectrum-diffusion[ray]'" in message
