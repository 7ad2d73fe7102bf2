"""Lists of prompts: the ones that ship, files in every format, and copies of the public lists' form made by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from extras import needs

from spectrum_diffusion import loading as default_model
from spectrum_diffusion.bench import prompts
from spectrum_diffusion.bench.prompts import COCO, DRAWBENCH, Prompt, load_prompts
from spectrum_diffusion.errors import InvalidOptionError, MissingPackageError, SpectrumWarning
from spectrum_diffusion.loading import ASSETS


def test_tiny_ships_and_the_small_model_knows_every_word() -> None:
    prompts = load_prompts("tiny")
    assert len(prompts) == len({prompt.text for prompt in prompts}) >= 64
    assert all(prompt.category for prompt in prompts)
    vocabulary = json.loads((ASSETS / "tiny-flux/tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    words = {entry for entry, *_ in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    unknown = {
        word for prompt in prompts for word in prompt.text.split() if word not in words and f"{word}</w>" not in words
    }
    assert not unknown


def test_any_beginning_of_tiny_is_mixed() -> None:
    assert len({prompt.category for prompt in load_prompts("tiny", limit=8)}) >= 5


def test_tiny_is_made_of_the_training_concepts() -> None:
    concepts = (Path(__file__).parents[2] / "training/concepts.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(concepts.splitlines()))
    names = {name for row in rows for name in (row["name"], row["also"]) if name}
    for prompt in load_prompts("tiny"):
        subject = prompt.text.split(" on ")[0]
        assert subject in names or subject.split(" ", 1)[1] in names, prompt


def test_a_small_model_that_knows_other_things_has_its_own_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("tiny-own", "prompt,category\nx y,z\n"), ("tiny-plain", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        if text:
            (folder / "prompts.csv").write_text(text)
    monkeypatch.setattr(default_model, "CHECKOUT_MODELS", tmp_path)
    assert load_prompts("tiny", model="tiny-own") == [Prompt("x y", "z")]
    assert load_prompts("tiny", model="tiny-plain") == load_prompts("tiny", model="tiny-flux") == load_prompts("tiny")


def test_limit_takes_the_beginning() -> None:
    assert load_prompts("tiny", limit=3) == load_prompts("tiny")[:3]
    assert load_prompts("tiny", limit=10**6) == load_prompts("tiny")
    with pytest.raises(InvalidOptionError, match="limit=0 leaves no prompt"):
        load_prompts("tiny", limit=0)


FILES = {
    "lines.txt": (
        "\ufeffred apple\n\n  dog, and cat \r\nü\n",
        [Prompt("red apple"), Prompt("dog, and cat"), Prompt("ü")],
    ),
    "no-suffix": ("dog\n", [Prompt("dog")]),
    "a.csv": ('prompt,category\n"a, b",x\ndog,\n', [Prompt("a, b", "x"), Prompt("dog")]),
    "lines.csv": ('prompt\n"two\nlines"\n', [Prompt("two\nlines")]),
    "drawbench.tsv": ("Prompts\tCategory\nA red car.\tColors\n", [Prompt("A red car.", "Colors")]),
    "a.json": ('["dog", {"prompt": "cat", "category": "pets"}]', [Prompt("dog"), Prompt("cat", "pets")]),
    "vbench.json": (
        '[{"prompt_en": "a cat", "dimension": ["scene", "color"], "auxiliary_info": {}}]',
        [Prompt("a cat", "scene,color")],
    ),
    "coco.json": (
        json.dumps(
            {
                "images": [{"id": 9}, {"id": 4}],
                "annotations": [
                    {"image_id": 9, "id": 1, "caption": "A dog. "},
                    {"image_id": 4, "id": 2, "caption": "A cat."},
                    {"image_id": 9, "id": 3, "caption": "The dog."},
                ],
            }
        ),
        [Prompt("A dog."), Prompt("A cat.")],
    ),
    "a.jsonl": ('{"text": "dog"}\n\n{"caption": "cat"}\n', [Prompt("dog"), Prompt("cat")]),
    # Line separators of other kinds, as in texts from the web, are part of a prompt.
    "separators.txt": (
        "a\u2028dog\r\na\x85cat\rone\x0bfox\n",
        [Prompt("a\u2028dog"), Prompt("a\x85cat"), Prompt("one\x0bfox")],
    ),
    "separators.jsonl": ('{"text": "a\u2028dog"}\r\n{"text": "cat"}', [Prompt("a\u2028dog"), Prompt("cat")]),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    text, expected = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert load_prompts(tmp_path / name) == expected
    assert load_prompts(str(tmp_path / name), limit=1) == expected[:1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "prompt,Seed,steps\ndog,1,20\n"), ("a.jsonl", '{"prompt": "dog", "seed": 1, "steps": 20}\n')],
)
def test_columns_of_settings_are_not_ignored_in_silence(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.warns(SpectrumWarning, match="seed, steps ignored, because all prompts of a list share"):
        assert load_prompts(tmp_path / name) == [Prompt("dog")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff\xfe\x00", "can't be read as .txt"),
        ("a.json", b"{", "can't be read as .json"),
        ("a.jsonl", b'{"prompt": "dog"}\n\n{"prompt": }\n', "line 3: Expecting value"),
        ("a.json", b'[{"title": "dog"}]', "entry without a text named prompt or .*title"),
        ("a.json", b"[3]", "entry without a text"),
        ("a.json", b'[{"prompt": 3}]', "entry without a text"),
        ("a.csv", b"title\ndog\n", "entry without a text"),
        ("a.csv", b"prompt,category\n", "holds no prompt"),
    ],
)
def test_wrong_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidOptionError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize("source", ["no-such-list", "no/such/file.txt", "."])
def test_an_unknown_source_names_the_known_ones(source: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"give one of drawbench, coco, vbench, tiny, or a file"):
        load_prompts(source)


# --- lists on the Hub: a folder with the same columns stands for the repository ---


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path


def test_drawbench_columns(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = offline / "drawbench"
    folder.mkdir()
    (folder / "train.csv").write_text('Prompts,Category\n"A red, colored car.",Colors\nOne cat.,Counting\n')
    monkeypatch.setitem(prompts.SOURCES, "drawbench", replace(DRAWBENCH, repository=str(folder)))
    expected = [Prompt("A red, colored car.", "Colors"), Prompt("One cat.", "Counting")]
    assert load_prompts("drawbench") == load_prompts("DrawBench") == expected


def test_coco_takes_the_first_caption_of_each_picture(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = offline / "coco"
    folder.mkdir()
    rows = [{"image_id": 1, "captions": ["A dog. ", "The dog."]}, {"image_id": 2, "captions": ["A cat."]}]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text(json.dumps({"image_id": 3, "captions": ["never"]}) + "\n")
    monkeypatch.setitem(prompts.SOURCES, "coco", replace(COCO, repository=str(folder)))
    assert load_prompts("coco") == [Prompt("A dog."), Prompt("A cat.")]


@pytest.mark.parametrize(
    "wrong",
    [{"split": "test"}, {"columns": ("no", "")}, {"repository": "no-such/drawbench"}, {"repository": "/no/such"}],
)
def test_what_cannot_be_loaded_says_what_to_do(wrong: dict[str, Any], offline: Path) -> None:
    folder = offline / "drawbench"
    folder.mkdir()
    (folder / "train.csv").write_text("Prompts,Category\nOne cat.,Counting\n")
    with pytest.raises(InvalidOptionError, match=r"can't be loaded: .*give a file of prompts"):
        replace(DRAWBENCH, **{"repository": str(folder), **wrong})()


def test_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"sayakpaul/drawbench need the package datasets: pip install"):
        load_prompts("drawbench")


# --- VBench's list, from its package ---


def vbench_package(folder: Path) -> None:
    """A package that can't be imported here, as vbench itself can't."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    listed = [{"prompt_en": "a cat", "dimension": ["scene"]}, {"prompt_en": "a dog", "dimension": ["color", "scene"]}]
    (folder / "VBench_full_info.json").write_text(json.dumps(listed))


def test_vbench_is_read_and_not_imported(tmp_path: Path) -> None:
    vbench_package(tmp_path / "vbench")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from spectrum_diffusion.prompts import load_prompts\n"
        "print([(p.text, p.category) for p in load_prompts('vbench')], 'vbench' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[('a cat', 'scene'), ('a dog', 'color,scene')] False"


def test_vbench_of_the_program_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRUM_PROGRAMS", str(tmp_path))
    monkeypatch.setattr(prompts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps vbench"):
        load_prompts("vbench")
    vbench_package(tmp_path / "vbench/lib/python3.11/site-packages/vbench")
    assert load_prompts("vbench", limit=1) == [Prompt("a cat", "scene")]


def parquet_of(path: Path, **columns: list[Any]) -> Path:
    needs("pyarrow")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_has_the_columns_of_a_table(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "p.parquet", id=[1, 2], Caption=["red apple", " panda "], category=["food", None])
    assert load_prompts(path) == [Prompt("red apple", "food"), Prompt("panda")]


def test_parquet_without_texts_or_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="name the column of the texts prompt"):
        load_prompts(parquet_of(tmp_path / "p.parquet", id=[1]))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InvalidOptionError, match="can't be read as Parquet"):
        load_prompts(tmp_path / "broken.parquet")


def test_parquet_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'spectrum-diffusion\[parquet\]'"):
        load_prompts(tmp_path / "p.parquet")
