"""Files from strangers: whatever they hold, a reader returns or raises a SpectrumError, and nothing of them runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tune.linear import build

import spectrum_diffusion
from spectrum_diffusion import InvalidOptionError, SpectrumError, load_pipeline
from spectrum_diffusion.bench.batch.plan import _file
from spectrum_diffusion.bench.evaluate import _begin
from spectrum_diffusion.bench.evaluate.store import Store
from spectrum_diffusion.bench.metrics.programs import read_manifest
from spectrum_diffusion.bench.prompts import load_prompts
from spectrum_diffusion.cli import lora, outputs
from spectrum_diffusion.loading import ASSETS, DEFAULT_MODEL
from spectrum_diffusion.methods import METHODS
from spectrum_diffusion.plan import Plan, read_plan
from spectrum_diffusion.untrusted import LARGEST, parse_json, read_text

pytestmark = pytest.mark.filterwarnings("ignore::spectrum_diffusion.SpectrumWarning")

fuzzed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NUMBERS = st.one_of(
    st.integers(-3, 30), st.integers(), st.floats(), st.sampled_from([10**9, 2**63, 10**400, 1e308, 5e-324, -0.0])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
OWN = [name for name in METHODS if ":" not in name]
OPTIONS = sorted({option for name in OWN for option in METHODS[name].defaults()} | {"name", "self", "cls", "method"})
PLANS = st.fixed_dictionaries(
    {
        "method": st.one_of(st.sampled_from(OWN), VALUES),
        "options": st.one_of(st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3), VALUES),
        "model": st.one_of(st.just("Denoiser-0"), VALUES),
    },
    optional={"format": st.one_of(st.sampled_from([1, 2]), VALUES), "steps": VALUES, "conditions": VALUES},
)
CONDITIONS = {
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "config": {},
    "levels": [],
    "guidance": {},
    "latents": [6],
}


@fuzzed
@given(PLANS)
@example({"method": "spectrum", "options": {"name": 1}, "model": "Denoiser-0"})
@example({"method": "paper", "options": {1: 2}, "model": "Denoiser-0"})
@example({"method": "paper", "options": {"degree": 10**9, "site": "output"}, "model": "Denoiser-0"})
@example({"method": "taylor", "options": {"order": 10**9, "site": "output"}, "model": "Denoiser-0"})
@example({"method": "hicache", "options": {"order": 10**9, "site": "output"}, "model": "Denoiser-0"})
@example(
    {"method": "spectrum", "options": {}, "model": "Denoiser-0", "conditions": {**CONDITIONS, "levels": [10**400]}}
)
@example({"method": "spectrum", "options": {}, "model": "Denoiser-0", "conditions": {**CONDITIONS, "latents": [1e400]}})
def test_any_plan_is_enabled_or_refused(plan: Any) -> None:
    pipe = build()
    with contextlib.suppress(SpectrumError):
        with spectrum_diffusion.enable(pipe, plan=plan):
            pipe("fox", num_inference_steps=9, generator=torch.Generator().manual_seed(0))
    spectrum_diffusion.disable(pipe)
    assert torch.isfinite(pipe("fox", generator=torch.Generator().manual_seed(0))[0]).all()


@fuzzed
@given(st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
@example(b"[" * 200_000)
@example(b'{"a": "\\ud800"}')
@example(b"9" * 5_000)
@example(b"1e999")
def test_any_file_is_a_value_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    for suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt"):
        file = tmp_path / f"a{suffix}"
        file.write_bytes(content)
        with contextlib.suppress(SpectrumError):
            for prompt in load_prompts(file):
                prompt.text.encode(), prompt.category.encode()
    with contextlib.suppress(SpectrumError):
        assert isinstance(read_plan(tmp_path / "a.json"), Plan)
    (tmp_path / "manifest.jsonl").write_bytes(content)
    with contextlib.suppress(SpectrumError):
        read_manifest(tmp_path)


@fuzzed
@given(st.lists(st.fixed_dictionaries({}, optional={"prompt": VALUES, "category": VALUES, "image_id": VALUES})))
@example([{"prompt": "a", "category": 5}])
def test_any_table_of_prompts(tmp_path: Path, rows: list[Any]) -> None:
    file = tmp_path / "a.json"
    for value in (rows, {"annotations": [*rows, 3]}, {"annotations": [{"caption": "a", "image_id": []}, *rows]}):
        file.write_text(json.dumps(value), encoding="utf-8")
        with contextlib.suppress(SpectrumError):
            load_prompts(file)


@fuzzed
@given(st.fixed_dictionaries({"file": VALUES, "prompt": VALUES}, optional={"category": VALUES}))
@example({"file": 3, "prompt": "a"})
@example({"file": "\0", "prompt": "a"})
def test_any_manifest_of_a_metric(tmp_path: Path, line: Any) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with contextlib.suppress(SpectrumError):
        read_manifest(tmp_path)


class _Work:
    """What the manifest of an evaluation is made of."""

    settings: dict[str, Any] = {}
    cases: tuple[Any, ...] = ()

    class request:  # noqa: N801
        model, command, rows, seeds = "m", "", (), ()


@fuzzed
@given(st.one_of(st.dictionaries(st.sampled_from(["runs", "seeds"]), VALUES), VALUES))
@example({"runs": 3})
@example({"runs": {"a": 1}})
def test_any_manifest_of_an_evaluation(tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert _begin(tmp_path, _Work, {})["runs"][-1]["begun"]  # type: ignore[arg-type]


class _Unit:
    name, key = "units/a", "k"


@fuzzed
@given(VALUES)
@example("abc")
@example({"\0": "x"})
@example({"a": 3})
def test_any_record_of_an_evaluation(tmp_path: Path, files: Any) -> None:
    (tmp_path / "units").mkdir(exist_ok=True)
    (tmp_path / "units/a.json").write_text(json.dumps({"key": "k", "files": files}), encoding="utf-8")
    assert Store(tmp_path).record(_Unit) in (None, {"key": "k", "files": {}})  # type: ignore[arg-type]


def test_a_record_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "evaluation"
    (folder / "units").mkdir(parents=True)
    digest = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret", str(tmp_path / "secret")):
        (folder / "units/a.json").write_text(json.dumps({"key": "k", "files": {name: digest}}), encoding="utf-8")
        assert Store(folder).record(_Unit) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[" * 200_000, '"\\ud800"', "9" * 5_000])
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_file_without_end_and_one_that_is_too_large(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    assert len(read_text(tmp_path / "large.json", LARGEST + 1)) == LARGEST + 1
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in (
        (large, f"more than {LARGEST} bytes"),
        (Path("/dev/zero"), "not a regular file"),
        (fifo, "not a regular file"),
    ):
        with pytest.raises(InvalidOptionError, match=message):
            read_plan(path)


# Models and LoRAs.


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / DEFAULT_MODEL, tmp_path / "model"))


@pytest.mark.parametrize("place", ["pipeline", "component"])
def test_a_model_that_brings_code_is_refused_before_it_runs(model: Path, tmp_path: Path, place: str) -> None:
    mark = tmp_path / "ran"
    index = json.loads((model / "model_index.json").read_text())
    file = model / "evil.py" if place == "pipeline" else model / "transformer/evil.py"
    file.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    index |= {"_class_name": ["evil", "Evil"]} if place == "pipeline" else {"transformer": ["evil", "Evil"]}
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidOptionError, match=r"brings Python code of its own, .*evil\.py"):
        load_pipeline(model)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "[]", "[" * 200_000, '{"self": 1}', '{"kwargs": 1}', '{"steps": NaN}'])
def test_call_defaults_that_are_none(model: Path, content: str) -> None:
    (model / "call_defaults.json").write_text(content)
    with pytest.raises(InvalidOptionError, match=r"call_defaults\.json"):
        load_pipeline(model)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_a_pickle_as_a_lora_does_not_run(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("peft")
    mark, file = tmp_path / "ran", tmp_path / f"lora{suffix}"
    file.write_bytes(pickle.dumps({"transformer.x": Exploit(mark)}))
    with pytest.raises(InvalidOptionError, match="cannot be loaded"):
        lora.load_loras(spectrum_diffusion.load_default_pipeline(), [str(file)])
    torch.save({"transformer.x": Exploit(mark)}, file)
    with pytest.raises(InvalidOptionError, match="cannot be loaded"):
        lora.load_loras(spectrum_diffusion.load_default_pipeline(), [str(file)])
    assert not mark.exists()


def test_a_pickle_as_weights_of_a_model_does_not_run(model: Path, tmp_path: Path) -> None:
    weights = next((model / "transformer").glob("*.safetensors"))
    mark = tmp_path / "ran"
    torch.save({"x": Exploit(mark)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises((OSError, ValueError, pickle.UnpicklingError)):
        load_pipeline(model)
    assert not mark.exists()


def test_nothing_in_the_package_reads_a_pickle() -> None:
    package = Path(spectrum_diffusion.__file__).parent
    for path in package.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"
            assert "pickle.load" not in line, f"{path}: {line}"
            assert "allow_pickle=True" not in line, f"{path}: {line}"


# Names of outputs.

HARD = ["../../etc/passwd", "/etc/passwd", "..\\..\\x", "a" * 5_000, "é" * 500, "𝒳" * 500, "con", "NUL", "\0", ".", ""]
PATTERNS = ["{prompt}.png", "{prompt}-{seed}.png", "{index}{prompt}.png"]


@given(st.one_of(st.sampled_from(HARD), st.text()), st.sampled_from(PATTERNS))
@settings(deadline=None)
def test_a_prompt_names_a_file_in_the_folder(prompt: str, pattern: str) -> None:
    (path,) = outputs.paths_for(Path("out") / pattern, [prompt], 1)
    assert path.parent == Path("out")
    assert len(path.name.encode()) <= outputs.LONGEST_NAME
    assert path.name.split(".")[0].lower() not in outputs.RESERVED
    shard, name = _file("{}", prompt, 1, ".png").split("/")
    assert shard.isalnum()
    assert not set(name) & {"/", "\\", "\0"}
    assert len(name.encode()) <= outputs.LONGEST_NAME


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(outputs.MistakeError, match="but a name has at most 240"):
        outputs.paths_for(Path("{prompt}{prompt}.png"), ["𝒳" * 48] * 2, 1)
    with pytest.raises(outputs.MistakeError, match="of 304 bytes"):
        outputs.paths_for(Path("a" * 300 + ".png"), ["fox"], 1)
