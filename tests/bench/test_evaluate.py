"""An evaluation: right against a plain recomputation, resumed after any kill, never mixed, never doubled."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prompted import STEPS, TEXTS, prompted, request
from tqdm.auto import tqdm
from typer.testing import CliRunner

import spectrum_diffusion as sd
from spectrum_diffusion import atomic
from spectrum_diffusion.atomic import StoreError
from spectrum_diffusion.bench import cost
from spectrum_diffusion.bench.evaluate import Row, evaluate, files, lock
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.cli import app
from spectrum_diffusion.errors import ConflictError, InvalidOptionError
from spectrum_diffusion.keys import code_of, code_of_modules, fingerprint

CALLS = len(TEXTS) * 3 + 3
"""Of a new evaluation: two prompts with the reference and two rows, and the operations of all three counted once."""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def essence(folder: Path) -> list[dict[str, Any]]:
    """The lines without what differs from run to run: time and memory."""
    differs = ("seconds", "loop_seconds", "memory", "run")
    return [{name: value for name, value in line.items() if name not in differs} for line in lines(folder)]


def snapshot(folder: Path) -> dict[str, int]:
    """When each file of finished work was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("[uf]*/**/*") if path.is_file()}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted()


@pytest.fixture(scope="module")
def whole(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate(pipe, request(), folder).computed == CALLS
    return folder


def test_results_are_those_of_a_plain_recomputation(pipe: Any, whole: Path) -> None:
    units = {(line["row"], line["prompt"]): line for line in lines(whole)}
    assert len(units) == len(TEXTS) * 3
    for text in TEXTS:
        reference = _pixels(pipe(text, generator=torch.Generator().manual_seed(0), output_type="pil"))
        with sd.enable(pipe, "reuse", evaluated=[0, 1, 3]) as handle:
            drawn = _pixels(pipe(text, generator=torch.Generator().manual_seed(0), output_type="pil"))
            assert units["reuse", text]["evaluated"] == handle.summary().evaluated == [0, 1, 3]
        kept = np.asarray(Image.open(whole / units["reuse", text]["file"]), dtype=np.float64)
        assert np.array_equal(kept, drawn)
        psnr = 10 * math.log10(1 / np.mean(((drawn - reference) / 255) ** 2))
        assert units["reuse", text]["metrics"]["psnr"] == pytest.approx(psnr, rel=1e-9)
        assert units["reference", text]["nfe"] == STEPS
        assert units["fewer", text]["nfe"] == STEPS // 2
        assert units["reuse", text]["decisions"] == {"cond": "EEfEff"}


def _pixels(output: Any) -> np.ndarray:
    return np.asarray(output.images[0].convert("RGB"), dtype=np.float64)


def test_rows_are_the_means_of_their_units(whole: Path) -> None:
    rows = {row["label"]: row for row in json.loads((whole / "results.json").read_text())["rows"]}
    for label in ("fewer", "reuse"):
        psnr = [line["metrics"]["psnr"] for line in lines(whole) if line["row"] == label]
        assert rows[label]["metrics"]["psnr"]["mean"] == pytest.approx(statistics.fmean(psnr))
        assert rows[label]["units"] == rows[label]["of"] == len(TEXTS)
        assert rows[label]["fewer_evaluations"] == 2.0
    assert rows["fewer"]["flops"]["evaluations"] == pytest.approx(3)
    assert 3 < rows["reuse"]["flops"]["evaluations"] < 3.5  # what is outside of the blocks runs at every step
    gap = rows["reuse"]["metrics"]["psnr"]["against_baseline"]
    assert gap["mean"] == pytest.approx(
        rows["reuse"]["metrics"]["psnr"]["mean"] - rows["fewer"]["metrics"]["psnr"]["mean"]
    )
    assert gap["verdict"] == "too few prompts"


def test_seconds_of_the_loop_and_peak_memory_are_of_each_call(whole: Path) -> None:
    rows = {row["label"]: row for row in json.loads((whole / "results.json").read_text())["rows"]}
    for label, row in rows.items():
        of = [line for line in lines(whole) if line["row"] == label]
        assert all(0 < line["loop_seconds"] < line["seconds"] for line in of)
        assert row["loop_seconds"] == pytest.approx(statistics.median(line["loop_seconds"] for line in of))
        peaks = [line["memory"]["bytes"] for line in of]
        assert all(2**20 < peak < 2**40 for peak in peaks)
        assert row["memory"] == {
            "median": statistics.median(peaks),
            "most": max(peaks),
            "kind": cost.peak_memory(torch.device("cpu")).kind,
        }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_a_call_that_takes_more_memory_has_a_higher_peak(tmp_path: Path) -> None:
    pipe = prompted()
    base, large = type(pipe), 300 * 2**20

    def call(self: Any, prompt: str, **arguments: Any) -> Any:
        if prompt == "large":
            torch.ones(large // 4)
        return base.__call__(self, prompt, **arguments)

    pipe.__class__ = type(base.__name__, (base,), {"__call__": call})
    evaluate(pipe, request(prompts=(Prompt("large"), Prompt("small")), call={"num_inference_steps": 8}), tmp_path)
    peaks = {(line["row"], line["prompt"]): line["memory"]["bytes"] for line in lines(tmp_path)}
    for row in ("reference", "fewer", "reuse"):
        assert peaks[row, "large"] - peaks[row, "small"] > 0.8 * large


def test_the_same_again_computes_and_writes_nothing(pipe: Any, whole: Path) -> None:
    before, results = snapshot(whole), essence(whole)
    pipe.calls.clear()
    assert evaluate(pipe, request(), str(whole)).computed == 0
    assert pipe.calls == []  # no warm-up either
    assert snapshot(whole) == before
    assert essence(whole) == results


def test_rows_that_differ_by_their_label_are_drawn_once(pipe: Any, whole: Path, tmp_path: Path) -> None:
    rows = [Row("reuse", {"evaluated": [0, 1, 3]}, label) for label in ("reuse", "again")]
    done = []
    results = evaluate(pipe, request(*rows), tmp_path, on_unit=lambda *state: done.append(state[:2]))
    calls = 2 * len(TEXTS) + 2
    assert results.computed == calls
    assert done[-1] == (calls, calls)
    assert [row["units"] for row in results.rows] == [len(TEXTS)] * 3
    units = essence(tmp_path)
    assert [{**line, "row": "reuse"} for line in units if line["row"] == "again"] == [
        line for line in essence(whole) if line["row"] == "reuse"
    ]
    more = request(*rows, Row("reuse", {"evaluated": [0, 1, 3]}, "third"))  # named later, and there already
    assert evaluate(pipe, more, tmp_path).computed == 0


def test_another_setting_adds_what_it_must(pipe: Any, tmp_path: Path) -> None:
    evaluate(pipe, request(), tmp_path)
    before = snapshot(tmp_path)
    more = request(prompts=(Prompt(TEXTS[0]), Prompt("fox")), seeds=(0, 1))
    # Of four cases one is there: three references, three of each row.
    assert evaluate(pipe, more, tmp_path).computed == 9
    assert len(lines(tmp_path)) == 12
    assert evaluate(pipe, request(Row("taylor", {"evaluated": [0, 1, 3]})), tmp_path).computed == len(TEXTS) + 1
    assert {line["row"] for line in lines(tmp_path)} == {"reference", "taylor:evaluated=[0, 1, 3]"}
    assert before.items() <= snapshot(tmp_path).items()
    assert evaluate(pipe, request(), tmp_path).computed == 0


def test_another_call_or_model_is_made_anew(pipe: Any, tmp_path: Path) -> None:
    evaluate(pipe, request(), tmp_path)
    assert evaluate(pipe, request(call={"guidance_scale": 2.0}), tmp_path).computed == CALLS
    other = prompted()
    with torch.no_grad():
        other.transformer.proj_out.weight.mul_(1.01)
    assert fingerprint(other) != fingerprint(pipe)
    assert evaluate(other, request(), tmp_path).computed == CALLS
    assert len(lines(tmp_path)) == 6
    assert evaluate(pipe, request(), tmp_path).computed == 0


def test_what_was_done_to_the_pipeline_counts_and_what_was_undone_does_not() -> None:
    pipe = prompted()
    untouched = fingerprint(pipe)
    pipe(TEXTS[0])
    with sd.enable(pipe, "paper"):
        pipe(TEXTS[0])
    assert fingerprint(pipe) == untouched
    pipe.transformer.transformer_blocks[0].compile()
    compiled = fingerprint(pipe)
    assert compiled != untouched
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert fingerprint(pipe) not in (untouched, compiled)


def test_other_versions_are_made_anew(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrum_diffusion.bench.evaluate import units

    evaluate(pipe, request(), tmp_path)
    original = units.environment
    monkeypatch.setattr(units, "environment", lambda pipe: {**original(pipe), "torch": "0.0"})
    assert evaluate(pipe, request(), tmp_path).computed == CALLS


def test_another_code_of_a_method_is_another_result(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrum_diffusion.bench.evaluate import units

    evaluate(pipe, request(), tmp_path)
    monkeypatch.setattr(units, "code_of", lambda method: "changed")
    # The untouched pipeline runs no code of a method.
    assert evaluate(pipe, request(), tmp_path).computed == CALLS - len(TEXTS) - 1


def test_the_code_of_a_method_is_told_from_others() -> None:
    digests = {name: code_of(cls) for name, cls in sd.METHODS.items()}
    assert digests["fora"] != digests["fewer-steps"]
    assert digests["fora"] != digests["taylor"] != digests["taylorseer"]


def test_a_changed_byte_of_a_file_is_another_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrum_diffusion import keys

    def digest(method: str = "FORA = 1", shared: str = "SHARED = 1") -> str:
        (tmp_path / "core").mkdir(exist_ok=True)
        (tmp_path / "core" / "machinery.py").write_text(shared)
        (tmp_path / "own.py").write_text(method)
        keys.code_of_modules.cache_clear()
        return code_of(Own)

    module = types.ModuleType("own_method")
    module.__file__ = str(tmp_path / "own.py")
    monkeypatch.setitem(sys.modules, "own_method", module)
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    Own = type("Own", (sd.METHODS["fora"],), {"__module__": "own_method"})
    plain = digest()
    assert digest() == plain
    assert len({plain, digest(method="FORA = 2"), digest(shared="SHARED = 2")}) == 3
    keys.code_of_modules.cache_clear()


def test_the_code_of_a_metric_is_its_own_file() -> None:
    names = ("pixels", "lpips", "perceptual")
    assert len({code_of_modules(f"spectrum_diffusion.bench.metrics.{name}") for name in names}) == len(names)


def test_a_metric_is_added_without_drawing(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from spectrum_diffusion.bench.metrics import METRICS

    evaluate(pipe, request(), tmp_path)
    monkeypatch.setitem(METRICS, "again", replace(METRICS["psnr"], name="again"))
    assert evaluate(pipe, request(metrics=("psnr", "again")), tmp_path).computed == 0
    for line in lines(tmp_path):
        assert line["row"] == "reference" or line["metrics"]["again"] == line["metrics"]["psnr"] is not None


@pytest.mark.parametrize(
    "damage", ["record cut off", "record of another", "picture cut off", "picture gone", "garbage"]
)
def test_damaged_files_are_made_anew(damage: str, pipe: Any, whole: Path, tmp_path: Path) -> None:
    evaluate(pipe, request(), tmp_path)
    record = next((tmp_path / "units" / "reuse").glob("panda*.json"))
    picture = record.with_suffix(".png")
    if damage == "record cut off":
        record.write_bytes(record.read_bytes()[:100])
    elif damage == "record of another":
        record.write_text(json.dumps({**json.loads(record.read_text()), "key": "another"}))
    elif damage == "picture cut off":
        picture.write_bytes(picture.read_bytes()[:-20])
    elif damage == "picture gone":
        picture.unlink()
    else:
        record.write_bytes(b"\xff\x00[1]")
    assert evaluate(pipe, request(), tmp_path).computed == 1
    assert essence(tmp_path) == essence(whole)


def test_damaged_metrics_and_manifest_are_made_anew(pipe: Any, whole: Path, tmp_path: Path) -> None:
    evaluate(pipe, request(), tmp_path)
    next((tmp_path / "units" / "reuse").glob("panda*.metrics")).write_text('{"psnr": 3}')
    (tmp_path / "manifest.json").write_text("{")
    assert evaluate(pipe, request(), tmp_path).computed == 0
    assert essence(tmp_path) == essence(whole)


def forked(work: Callable[[], object]) -> int:
    """Start a process that does some work and ends; its id."""
    if child := os.fork():
        return child
    try:
        # Progress bars share a lock with this process, which would wait for ever for a child killed with it.
        tqdm.set_lock(threading.RLock())
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def wait_for(child: int) -> int:
    """The signal that ended a process; 0 if it ended well."""
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def killed_at(rename: int, after: bool) -> Callable[[], None]:
    """Make this process kill itself just before or after its so-many-th rename."""
    seen, original = [0], os.replace

    def replace(source: Any, target: Any) -> None:
        seen[0] += 1
        if seen[0] == rename and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)
        if seen[0] == rename:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    return lambda: None


def test_killed_around_every_write_it_goes_on(pipe: Any, whole: Path, tmp_path: Path) -> None:
    """Every process is killed at its first, second or third rename, so that together they stop everywhere."""
    kills, chooser = 0, random.Random(0)
    while True:
        rename, after = chooser.randint(1, 4), chooser.random() < 0.5

        def work(rename: int = rename, after: bool = after) -> None:
            killed_at(rename, after)
            evaluate(pipe, request(), tmp_path)

        finished = snapshot(tmp_path)
        end = wait_for(forked(work))
        kept = snapshot(tmp_path)
        assert {path for path in finished if ".tmp" not in path} <= set(kept)
        if end == 0:
            break
        assert end == signal.SIGKILL
        kills += 1
        if kills > 60:  # few renames are left in a run that only writes results: let one end
            assert evaluate(pipe, request(), tmp_path).computed == 0
            break
    assert kills > 8
    assert essence(tmp_path) == essence(whole)
    assert not [path for path in tmp_path.rglob(".*") if ".tmp" in path.name]


def test_killed_at_random_moments_it_goes_on(pipe: Any, whole: Path, tmp_path: Path) -> None:
    assert _kill_at_random(pipe, tmp_path, 6, seed=1) >= 3
    _same_without_doubles(pipe, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_many_random_moments_it_goes_on(seed: int, pipe: Any, whole: Path, tmp_path: Path) -> None:
    _kill_at_random(pipe, tmp_path, 40, seed)
    _same_without_doubles(pipe, whole, tmp_path)


def _kill_at_random(pipe: Any, folder: Path, times: int, seed: int) -> int:
    """Start and kill so often, or until one ends before it is killed; how many were killed."""
    chooser, kills = random.Random(seed), 0
    for _ in range(times):
        child = forked(lambda: evaluate(pipe, request(), folder))
        time.sleep(chooser.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        kills += wait_for(child) == signal.SIGKILL
    return kills


def _same_without_doubles(pipe: Any, whole: Path, folder: Path) -> None:
    records = {path: path.stat().st_mtime_ns for path in folder.glob("[uf]*/**/*.json")}
    assert evaluate(pipe, request(), folder).computed == CALLS - len(records)
    assert all(path.stat().st_mtime_ns == written for path, written in records.items())
    assert essence(folder) == essence(whole)
    assert len(list(folder.glob("units/**/*.png"))) == len(TEXTS) * 3


def test_two_at_once_are_refused(pipe: Any, tmp_path: Path) -> None:
    with lock.locked(tmp_path), pytest.raises(ConflictError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        evaluate(pipe, request(), tmp_path)
    evaluate(pipe, request(), tmp_path)


def test_two_processes_at_once_one_is_refused(pipe: Any, whole: Path, tmp_path: Path) -> None:
    children = [forked(lambda: evaluate(pipe, request(), tmp_path)) for _ in range(4)]
    ends = [wait_for(child) for child in children]
    assert ends.count(0) >= 1  # one that begins after another has ended is no conflict
    assert evaluate(pipe, request(), tmp_path).computed == 0
    assert essence(tmp_path) == essence(whole)


def test_the_lock_of_a_killed_process_is_free(pipe: Any, tmp_path: Path) -> None:
    def work() -> None:
        with lock.locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(forked(work)) == signal.SIGKILL
    assert "pid" in (tmp_path / lock.HOLDER_FILE).read_text()
    with lock.locked(tmp_path):
        pass


@pytest.mark.parametrize("age", [0, lock.DEAD + 5])
def test_the_lock_of_another_machine_is_free_when_it_gives_no_sign(age: float, tmp_path: Path) -> None:
    file = tmp_path / lock.HOLDER_FILE
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    os.utime(file, (time.time() - age,) * 2)
    if age:
        with lock.locked(tmp_path):
            pass
    else:
        with pytest.raises(ConflictError, match="on elsewhere"), lock.locked(tmp_path):
            pass


def test_a_row_that_fails_does_not_lose_the_others(
    pipe: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spectrum_diffusion.bench.evaluate import work

    original = work.sample

    def sample(pipe: Any, case: Any, call: Any, row: Any, **options: Any) -> Any:
        if row is not None and row.label == "breaks" and case.prompt.text == TEXTS[1]:
            raise RuntimeError("out of luck\nand more")
        return original(pipe, case, call, row, **options)

    monkeypatch.setattr(work, "sample", sample)
    rows = (*request().rows, Row("reuse", {"evaluated": [0, 1]}, "breaks"))
    results = evaluate(pipe, request(*rows), tmp_path)
    assert results.failures["breaks"] == "'panda', seed 0: RuntimeError: out of luck"
    assert [line for line in essence(tmp_path) if line["row"] != "breaks"] == essence(whole)
    assert [row["units"] for row in results.rows if row["label"] == "breaks"] == [1]
    monkeypatch.setattr(work, "sample", original)
    again = evaluate(pipe, request(*rows), tmp_path)  # it is tried again, and nothing else is
    assert again.computed == 1
    assert "breaks" not in again.failures


def test_a_row_that_fails_is_left_out_from_there_on(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrum_diffusion.bench.evaluate import work

    original, asked = work.sample, []

    def sample(pipe: Any, case: Any, call: Any, row: Any, **options: Any) -> Any:
        if row is not None and row.label == "reuse":
            asked.append(case.prompt.text)
            raise RuntimeError("out of luck")
        return original(pipe, case, call, row, **options)

    monkeypatch.setattr(work, "sample", sample)
    assert list(evaluate(pipe, request(), tmp_path).failures) == ["reuse"]
    assert set(asked) == {TEXTS[0]}


def test_a_method_that_the_pipeline_can_not_have_is_a_failure(pipe: Any, tmp_path: Path) -> None:
    from spectrum_diffusion.bench.evaluate import units

    def refuse(pipe: Any, row: Row) -> dict[str, Any]:
        raise sd.UnsupportedModelError(f"{row.label} needs something else")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "probe", refuse)
        results = evaluate(pipe, request(), tmp_path)
    assert results.failures == {"fewer": "fewer needs something else", "reuse": "reuse needs something else"}
    assert results.computed == len(TEXTS) + 1
    assert [row["units"] for row in results.rows] == [2, 0, 0]


def test_the_pipeline_is_left_as_it_was(pipe: Any, tmp_path: Path) -> None:
    before = type(pipe)
    evaluate(pipe, request(), tmp_path)
    assert type(pipe) is before


def test_videos_are_kept_without_loss(tmp_path: Path) -> None:
    pipe = prompted("wan")
    results = evaluate(pipe, request(prompts=(Prompt("panda"),)), tmp_path)
    assert not results.failures
    unit = next(unit for unit in results.units if unit["row"] == "reuse")
    assert unit["file"].endswith(".zip")
    with sd.enable(pipe, "reuse", evaluated=[0, 1, 3]):
        drawn = pipe("panda", generator=torch.Generator().manual_seed(0), output_type="pil").frames[0]
    kept = files.decode((tmp_path / unit["file"]).read_bytes(), ".zip")
    assert len(kept) == len(drawn) == unit["frames"] > 1
    assert all(np.array_equal(np.asarray(a), np.asarray(b.convert("RGB"))) for a, b in zip(kept, drawn, strict=True))
    assert len(unit["decisions"]) == len(unit["branches"]) == 2
    assert evaluate(pipe, request(prompts=(Prompt("panda"),)), tmp_path).computed == 0


def test_the_path_of_the_latents_is_compared_step_by_step(pipe: Any, tmp_path: Path) -> None:
    results = evaluate(pipe, request(path=True), tmp_path)
    rows = {row["label"]: row for row in results.rows}
    path = rows["reuse"]["path_rmse"]
    assert path[:2] == [0.0, 0.0]  # evaluated, as the reference
    assert all(error > 0 for error in path[2:])
    assert rows["fewer"]["path_rmse"] is None  # its steps are others
    kept: dict[str, list[torch.Tensor]] = {}
    for name in ("reference", "reuse"):
        kept[name] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: Any, name: str = name) -> dict[str, Any]:
            kept[name].append(tensors["latents"].clone())
            return {}

        call = {"generator": torch.Generator().manual_seed(0), "callback_on_step_end": keep}
        if name == "reference":
            pipe(TEXTS[0], **call)
        else:
            with sd.enable(pipe, "reuse", evaluated=[0, 1, 3]):
                pipe(TEXTS[0], **call)
    errors = [float(((a - b) ** 2).mean().sqrt()) for a, b in zip(kept["reuse"], kept["reference"], strict=True)]
    unit = next(unit for unit in results.units if unit["row"] == "reuse" and unit["prompt"] == TEXTS[0])
    assert unit["path_rmse"] == pytest.approx(errors, rel=1e-5)


def test_an_identical_picture_has_an_infinite_psnr_apart_from_the_mean(pipe: Any, tmp_path: Path) -> None:
    results = evaluate(pipe, request(Row("reuse", {"evaluated": list(range(STEPS))}, "all")), tmp_path)
    psnr = results.rows[1]["metrics"]["psnr"]
    assert (psnr["mean"], psnr["infinite"]) == (None, len(TEXTS))
    assert "identical" in (tmp_path / "table.md").read_text()
    assert "Infinity" not in (tmp_path / "results.jsonl").read_text()


def test_a_full_disk_is_a_clear_error_and_loses_nothing(
    pipe: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = atomic._flush, [7]

    def flush(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path)

    monkeypatch.setattr(atomic, "_flush", flush)
    with pytest.raises(StoreError, match=r"No space left on device.*free some space .*same command"):
        evaluate(pipe, request(), tmp_path)
    assert not [path for path in tmp_path.rglob(".*") if ".tmp" in path.name]
    monkeypatch.setattr(atomic, "_flush", original)
    finished = len(list(tmp_path.glob("[uf]*/**/*.json")))
    assert finished
    assert evaluate(pipe, request(), tmp_path).computed == CALLS - finished
    assert essence(tmp_path) == essence(whole)


def test_a_folder_that_can_not_be_is_a_clear_error(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        evaluate(pipe, request(), tmp_path / "file" / "folder")


def test_the_manifest_says_what_made_the_results(pipe: Any, tmp_path: Path) -> None:
    for _ in range(2):
        evaluate(pipe, request(command="spectrum evaluate …"), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seeds"] == [0]
    assert [row["label"] for row in manifest["rows"]] == ["fewer", "reuse"]
    assert [run["computed"] for run in manifest["runs"]] == [CALLS, 0]
    assert manifest["settings"]["environment"]["torch"] == torch.__version__
    assert manifest["settings"]["call"]["num_inference_steps"] == STEPS


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ()},
        {"prompts": ()},
        {"seeds": ()},
        {"baseline": "nobody"},
        {"rows": (Row("reuse"), Row("reuse"))},
        {"rows": (Row("reuse", {}, "reference"),)},
    ],
)
def test_a_request_that_can_not_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        request(**changes)


def test_an_unknown_metric_is_refused_before_the_work(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"'beauty' is unknown.*: choose one of psnr"):
        evaluate(pipe, request(metrics=("beauty",)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_prompt_that_comes_twice_counts_once() -> None:
    twice = request(prompts=(Prompt("fox", "animal"), Prompt("owl"), Prompt("fox", "other")), seeds=(0, 0))
    assert [(case.prompt.text, case.prompt.category) for case in twice.cases] == [("fox", "animal"), ("owl", "")]


# The command

QUICK = ["--device", "cpu", "--steps", "8", "--methods", "fewer-steps:speedup=2,paper", "--metrics", "psnr"]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_the_command_prints_one_json_object_and_goes_on(tmp_path: Path) -> None:
    arguments = ("panda", "--prompts", "tiny", "--limit", 2, "-o", tmp_path / "out", "--json", *QUICK)
    printed = json.loads(run(*arguments).stdout)
    assert printed["computed"] == 9
    assert printed["prompts"] == 2
    assert [row["label"] for row in printed["rows"]] == ["reference", "fewer-steps:speedup=2", "paper"]
    assert all(Path(file).is_file() for file in printed["files"].values())
    again = json.loads(run(*arguments).stdout)
    assert again["computed"] == 0
    assert again["rows"] == printed["rows"]


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    result = run("panda", "-o", tmp_path / "out", *QUICK)
    assert "fewer-steps" in result.stdout
    assert "report.html" in result.stdout


def test_the_command_tells_of_failures_by_its_exit_code(tmp_path: Path) -> None:
    evaluated = "--methods=paper,reuse:evaluated=[0,90]"  # there is no step 90 of 8
    result = run("panda", "-o", tmp_path / "out", *QUICK[:4], evaluated, "--metrics", "psnr", code=1)
    assert "reuse:evaluated=[0,90] failed" in result.output
    assert {line["row"] for line in lines(tmp_path / "out")} == {"reference", "paper"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0", "--prompts", "tiny"], "leaves no prompt"),
        ([], "there is no prompt"),
        (["panda", "--prompts", "nowhere.txt"], "neither a known list nor a file"),
        (["panda", "--prompts", "tinny"], "(did you mean 'tiny'?)"),
        (["panda", "--metrics", "beauty"], "'beauty' is unknown"),
        (["panda", "--baseline", "nobody"], "is not the label of a row"),
        (["panda", "--methods", "papre"], "did you mean 'paper'"),
    ],
)
def test_mistakes_are_told_before_the_work(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, "-o", tmp_path / "out", "--device", "cpu", code=2)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_told(tmp_path: Path) -> None:
    with lock.locked(tmp_path):
        assert "in use by another evaluation" in run("panda", "-o", tmp_path, *QUICK, code=2).output


def test_a_full_disk_is_a_failure_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_flush", flush)
    assert "No space left on device" in run("panda", "-o", tmp_path, *QUICK, code=1).output


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """The whole program, from its start, killed at random moments."""
    program = "from spectrum_diffusion.cli import main; main()"
    command = [sys.executable, "-c", program, "evaluate", "panda", "dog", "--json", *QUICK, "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    chooser = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chooser.uniform(2, 12))
        process.kill()
        process.wait()
    continued = subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, text=True)
    assert json.loads(continued.stdout)["failures"] == {}
    assert essence(tmp_path / "killed") == essence(tmp_path / "whole")
