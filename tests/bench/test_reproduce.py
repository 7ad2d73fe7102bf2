"""The paper's experiments as data, and a table run again on the model that ships."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from typer.testing import CliRunner

from spectrum_diffusion import load_default_pipeline, make_method
from spectrum_diffusion.bench.evaluate import Results
from spectrum_diffusion.bench.evaluate.lock import locked
from spectrum_diffusion.bench.reproduce import MODELS, TABLES, TableResult, paper, results_page
from spectrum_diffusion.bench.reproduce.claims import claims_table
from spectrum_diffusion.bench.reproduce.figures import draw_figure
from spectrum_diffusion.bench.reproduce.paper import paper_value, reported
from spectrum_diffusion.bench.reproduce.rows import make_rows
from spectrum_diffusion.cli.app import app
from spectrum_diffusion.cli.printing import print_markdown
from spectrum_diffusion.loading import ASSETS, DEFAULT_MODEL
from spectrum_diffusion.methods import METHODS

SCHEDULED = [(name, setting) for name, table in TABLES.items() for setting in table.settings if not setting.tuned]
TUNED = [(name, setting) for name, table in TABLES.items() for setting in table.settings if setting.tuned]


@pytest.mark.parametrize(("table", "setting"), SCHEDULED)
def test_evaluations_of_every_setting_are_those_of_table_6(table: str, setting: paper.Setting) -> None:
    method = make_method(setting.method, **setting.options)
    assert len(method.schedule(method.sampler_steps(50))) == setting.nfe  # type: ignore[attr-defined]


@pytest.mark.parametrize(("table", "setting"), TUNED)
def test_a_threshold_can_be_found_where_one_is_wanted(table: str, setting: paper.Setting) -> None:
    assert setting.nfe is None
    assert {field.name for field in fields(METHODS[setting.method])} >= {"threshold", *setting.options}


def test_every_number_of_the_paper_stands_beside_a_setting() -> None:
    """Each row of the paper's tables but the full run."""
    values = {
        (name, MODELS[key].name, paper_value(name, MODELS[key], setting, "psnr"))
        for name, table in TABLES.items()
        for key in table.models
        for setting in table.settings
    }
    for row in reported():
        if row["method"] != "50 steps":
            assert (f"table{row['table']}", row["model"], float(row["psnr"])) in values, row


@pytest.mark.parametrize(
    ("table", "model", "label", "psnr"),
    [
        ("table1", "flux", "Spectrum α 0.75", 24.32),
        ("table1", "sd3", "ToCa N 6", 9.53),
        ("table2", "wan", "TaylorSeer N 4 O 1", 19.46),
        ("table3", "sd3", "Spectrum adaptive", 15.68),
        ("table4", "flux", "TaylorSeer module", 17.93),
        ("table7", "flux", "Spectrum α 3", 22.29),
        ("table1", "flux", "TeaCache at 14", 18.70),
        ("table1", "flux", "TeaCache at 10", 16.71),
        ("table2", "hunyuan", "TeaCache at 10", 21.42),
        ("table7", "flux", "TeaCache at 10", 16.07),
        ("table6", "flux", "FORA N 4", None),
        ("fig5", "flux", "Spectrum α 3, ridge 0.01", None),
    ],
)
def test_numbers_of_the_paper(table: str, model: str, label: str, psnr: float | None) -> None:
    (setting,) = (setting for setting in TABLES[table].settings if setting.label == label)
    assert paper_value(table, MODELS[model], setting, "psnr") == psnr


def test_labels_tell_settings_apart() -> None:
    """Also those of different tables, as they share rows."""
    rows: dict[str, Any] = {}
    for table in TABLES.values():
        labels = [setting.label for setting in table.settings]
        assert len(set(labels)) == len(labels)
        for setting in table.settings:
            what = (setting.method, setting.options, setting.tuned)
            assert rows.setdefault(setting.label, what) == what


def test_every_cell_of_a_sweep_has_one_setting() -> None:
    for name, table in TABLES.items():
        cells = [setting.cell for setting in table.settings if setting.cell]
        assert len(set(cells)) == len(cells)
        if table.sweep:
            down, across = ({cell[place] for cell in cells} for place in (0, 1))
            assert len(cells) == len(table.settings) == len(down) * len(across), name


def without_duration(page: str) -> str:
    """A page without how long its folder took: looking again takes time too."""
    return re.sub(r"this folder took [^.]*\.", "", page)


@pytest.mark.parametrize("only", [["--only", "flux"], pytest.param([], marks=pytest.mark.slow)], ids=["flux", "all"])
def test_tables_on_the_small_models(only: list[str], tmp_path: Path) -> None:
    arguments = ["reproduce", "table5", "fig3", "table8", *only, "--pairs", "1", "-o", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert json.loads(result.stdout)["output"] == str(tmp_path / "results.md")
    assert "| Spectrum α 3, the paper's | 0.0040 | 0.0164 | 0.0358 | 0.0742 | 0.1674 |" in text
    ours = next(line for line in text.splitlines() if line.startswith("| Spectrum α 3 |") and "–" not in line)
    values = [float(cell) for cell in ours.split("|")[2:-1]]
    assert values == sorted(values)  # the runs drift apart
    results = json.loads((tmp_path / "flux" / "results.json").read_text(encoding="utf-8"))
    nfe = {row["label"]: row["nfe"]["mean"] for row in results["rows"]}
    assert (nfe["reference"], nfe["TaylorSeer N 6 O 1"], nfe["Spectrum α 3"]) == (50, 12, 10)
    plan = json.loads((tmp_path / "flux" / "plans" / "teacache-10.json").read_text(encoding="utf-8"))
    assert plan["wanted_nfe"] == 10
    assert abs(plan["nfe"] - 10) <= 0.5
    with Image.open(tmp_path / "fig3-flux.png") as figure:
        assert figure.width > 7 * 256  # the untouched pictures and six rows
    assert "](fig3-flux.png)" in text

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert without_duration((tmp_path / "results.md").read_text(encoding="utf-8")) == without_duration(text)
    manifest = json.loads((tmp_path / "flux" / "manifest.json").read_text(encoding="utf-8"))
    assert [run["computed"] > 0 for run in manifest["runs"]] == [True, False]


def test_only_some_models(tmp_path: Path) -> None:
    arguments = ["reproduce", "table5", "table8", "--only", "rough", "--pairs", "1", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "`spectrum reproduce table5 table8 --only rough --pairs 1`: on tiny-rough, " in text
    assert [folder.name for folder in tmp_path.iterdir() if folder.is_dir()] == ["rough"]


def test_the_papers_models_are_loaded_from_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the branch of the full-size models, with the folder of a small one in the place of FLUX.1."""
    monkeypatch.setitem(MODELS, "flux", replace(MODELS["flux"], call={"height": 32, "num_inference_steps": 50}))
    listed = tmp_path / "listed.txt"
    listed.write_text("red apple\ndog\n", encoding="utf-8")
    arguments = ["reproduce", "table5", "--model", "real", "--weights", f"flux={ASSETS / DEFAULT_MODEL}"]
    arguments += ["--prompts", str(listed), "--pairs", "1", "-o", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert f"`spectrum {' '.join(arguments[:6])} --pairs 1 --prompts {listed} --device cpu`" in text
    assert "seed 42 each" in text
    results = json.loads((tmp_path / "out" / "flux-listed" / "results.json").read_text(encoding="utf-8"))
    assert results["settings"]["call"]["height"] == 32
    assert results["seeds"] == [42]
    (unit, *_) = (tmp_path / "out" / "flux-listed" / "units" / "reference").glob("*.png")
    with Image.open(unit) as picture:
        assert picture.size == (64, 32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--weights", "flux=x"], "add --model real"),
        (["--model", "real", "--weights", "flux"], "write KEY=DIR"),
        (["--only", "flux,pixart"], "--only 'pixart' is unknown: choose one of flux, sd3, wan, hunyuan, sdxl, rough"),
        (["--only", "rough"], "table5 do not run on rough: choose among flux"),
        (["--model", "real", "--weights", "rough=x"], "write KEY=DIR, with flux, sd3, wan, hunyuan, sdxl for KEY"),
        (["--model", "real", "--weights", "pixart=x"], "flux, sd3, wan, hunyuan, sdxl"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--metrics", "psnrr"], "did you mean 'psnr'"),
        (["--dtype", "fp16"], "--dtype 'fp16'"),
        (["--device", "tpu"], "--device 'tpu'"),
        (["--clip", "nowhere/none"], "nowhere/none"),
        (["--model", "real", "--weights", "flux=tiny-fluxx"], "--weights flux: 'tiny-fluxx'"),
    ],
)
def test_mistakes_are_told_before_the_work(given: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reproduce", "table5", "-o", str(tmp_path / "out"), *given])
    assert result.exit_code != 0
    assert said in " ".join(f"{result.output} {result.exception}".split())
    assert not (tmp_path / "out").exists()


def test_two_runs_at_once_in_a_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path):
        result = CliRunner().invoke(app, ["reproduce", "table5", "--pairs", "1", "-o", str(tmp_path)])
    assert result.exit_code != 0
    assert "in use by another" in result.output
    assert not (tmp_path / "results.md").exists()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    arguments = ["reproduce", "table5", "--pairs", "2", "-o", str(tmp_path)]
    command = [sys.executable, "-c", "from spectrum_diffusion.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not list(tmp_path.glob("flux/units/paper/[!.]*.json")):
            assert child.poll() is None
            time.sleep(0.05)
        child.kill()
    spent = json.loads((tmp_path / "clock.json").read_text(encoding="utf-8"))["seconds"]
    assert spent > 0
    finished = tmp_path.glob("flux/[uf]*/**/[!.]*.json")  # names of temporary files begin with a dot
    written = {path: path.stat().st_mtime_ns for path in finished}
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in written} == written
    manifest = json.loads((tmp_path / "flux" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["runs"][-1]["computed"] + len(written) == 2 * 3 + 3
    assert "| Spectrum α 3 |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "clock.json").read_text(encoding="utf-8"))["seconds"] > spent


def test_a_threshold_is_found_once_and_one_out_of_reach_is_told(tmp_path: Path) -> None:
    pipe = load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    settings = (
        paper.Setting("reachable", "easycache", {"warmup": 3}, tuned=8),
        paper.Setting("out of reach", "easycache", {"warmup": 3}, tuned=2),
        paper.Setting("scheduled", "fora", {"interval": 4}),
    )
    drawn: list[str] = []

    def made(prompt: str) -> tuple[list[str], dict[str, str]]:
        rows, problems = make_rows(pipe, settings, (prompt,), {"num_inference_steps": 12}, tmp_path, drawn.append)
        return [row.label for row in rows], problems

    labels, problems = made("red apple")
    assert labels == ["reachable", "scheduled"]
    assert "nfe=2 is out of reach of easycache" in problems["out of reach"]
    assert drawn
    kept = json.loads((tmp_path / "easycache-8.json").read_text(encoding="utf-8"))
    drawn.clear()
    rows, _ = make_rows(pipe, settings[:1], ("red apple",), {"num_inference_steps": 12}, tmp_path, drawn.append)
    assert drawn == []
    assert rows[0].options == kept["options"]
    make_rows(pipe, settings[:1], ("dog",), {"num_inference_steps": 12}, tmp_path, drawn.append)
    assert drawn  # for other prompts it is found anew


def by_hand(
    name: str, psnr: dict[str, float | None], paths: dict[str, float] | None = None, prompts: int = 8, key: str = "flux"
) -> TableResult:
    """Results of some prompts: PSNR by label, spread a little, None for a row that failed after the first of them; and
    a latent RMSE that is the same at all steps.
    """
    units, rows = [], []
    for label, mean in psnr.items():
        units_of_row = [
            {
                "key": f"{label}-{number}",
                "row": label,
                "prompt": f"prompt {number}",
                "seed": 0,
                "seconds": 1.0,
                "metrics": {"psnr": (40.0 if mean is None else mean) + 0.01 * number},
                "path_rmse": [paths[label] + 1e-4 * number] * 50 if paths else None,
            }
            for number in range(prompts if mean is not None else 1)
        ]
        units += units_of_row
        rows.append(
            {
                "label": label,
                "method": "paper",
                "units": len(units_of_row),
                "of": prompts,
                "nfe": {"mean": 14},
                "faster": None,
                "history_bytes": 0,
                "flops": {"evaluations": 14.2},
                "metrics": {"psnr": {"mean": 40.0 if mean is None else mean, "low": None, "high": None}},
                "path_rmse": None,
                "error": "out of luck" if mean is None else None,
            }
        )
    metrics = {"psnr": {"title": "PSNR"}}
    settings = {"environment": {"torch": "2", "threads": 1}}
    return TableResult(name, key, "tiny", Results(Path(), "tiny", units, rows, metrics, None, {}, settings))


def claim(text: str, *results: TableResult) -> str:
    (line,) = (line for line in claims_table(results).splitlines() if line.startswith(f"| {text}"))
    return line.split("|")[2].strip()


def test_a_claim_is_confirmed_denied_or_open() -> None:
    better = by_hand("table1", {"Spectrum α 0.75": 30.0, "FORA N 4": 20.0, "15 steps": 40.0, "ToCa N 4": 30.0})
    assert (
        claim("Spectrum at 14 is better than FORA", better)
        == "**yes** 30.0 (14.2) against 20.0 (14.2); paper 24.3, 15.2"
    )
    assert (
        claim("Spectrum at 14 is better than 15 steps", better)
        == "**no** 30.0 (14.2) against 40.0 (14.2); paper 24.3, 15.8"
    )
    assert claim("Spectrum at 14 is better than ToCa", better).startswith("open")
    assert "than TeaCache" not in claims_table([better])  # not among the results: nothing is said


def swept(name: str, value: dict[str, float | None], prompts: int = 8) -> TableResult:
    settings = TABLES[name].settings
    return by_hand(name, {s.label: value[s.cell[0]] for s in settings if s.cell}, prompts=prompts)


def test_claims_on_sweeps() -> None:
    peak: dict[str, float | None] = {"λ 0.001": 1.0, "λ 0.01": 2.0, "λ 0.1": 3.0, "λ 1": 2.0, "λ 10": 1.0}
    best = "λ = 0.1 is the best"
    assert claim(best, swept("fig5", peak)) == "**yes**; best on average: λ 0.1"
    assert claim(best, swept("fig5", {**peak, "λ 1": 5.0})) == "**no**; best on average: λ 1"
    assert claim(best, swept("fig5", {**peak, "λ 1": 3.0})) == "open; best on average: λ 0.1"
    rising: dict[str, float | None] = {"M 2": 1.0, "M 3": 2.0, "M 4": 3.0, "M 5": 3.1, "M 6": 3.2}
    rises = "quality rises"
    assert claim(rises, swept("fig6", rising)) == "**yes**; +2.0 dB from M 2 to M 4, +0.2 from there to M 6"
    assert claim(rises, swept("fig6", {**rising, "M 6": 2.0})).startswith("in part; ")
    assert claim(rises, swept("fig6", {**rising, "M 6": 9.0})).startswith("in part; ")
    assert claim(rises, swept("fig6", {**rising, "M 2": 9.0})).startswith("**no**; ")


def test_nothing_is_claimed_of_few_prompts_or_of_rows_that_failed() -> None:
    peak: dict[str, float | None] = {"λ 0.001": 1.0, "λ 0.01": 2.0, "λ 0.1": 3.0, "λ 1": 2.0, "λ 10": 1.0}
    assert claim("λ = 0.1 is the best", swept("fig5", peak, prompts=2)).startswith("too few")
    assert claims_table([swept("fig5", {**peak, "λ 10": None})]) == ""
    assert claims_table([by_hand("table1", {"Spectrum α 0.75": 30.0, "15 steps": None})]) == ""
    short = by_hand("table5", {"Spectrum α 3": 1.0, "TaylorSeer N 6 O 1": 1.0})
    for unit in short.results.units if short.results else []:
        unit["path_rmse"] = [0.1] * 28
    assert claims_table([short]) == ""


def test_the_page_marks_what_failed_and_what_is_best() -> None:
    labels = {s.label: s.cell for s in TABLES["fig5"].settings if s.cell}
    failed = {label: None if cell[0] == "λ 10" else float(cell[0] == "λ 1") for label, cell in labels.items()}
    text = results_page([by_hand("fig5", failed)], {}, "spectrum reproduce fig5", 0)
    assert "| λ 10 | – | – | – | – | – |" in text
    assert "| λ 1 | **1.00** | **1.00** |" in text
    table = results_page(
        [by_hand("table1", {"15 steps": None, "FORA N 4": 20.0})], {}, "spectrum reproduce table1", 600
    )
    assert "| 15 steps | failed: after 1 of 8: out of luck | – " in table
    assert "| FORA N 4 | 14 (13) | 14.2 | – | 0.00 MiB | 20 | 3.19 · 15.15 · 0.651 · 0.454 · 0.97 · 27.55 |" in table
    assert "| ToCa N 4 | failed: not among the results |" in table
    assert "`spectrum reproduce table1`: on tiny, 9 calls of a pipeline in 0 min; " in table
    assert "metrics, this folder took 10 min." in table


def test_the_best_of_all_methods_is_of_those_that_cost_as_much() -> None:
    result = by_hand("methods", {"FORA N 4": 30.0, "ToCa N 4": 50.0, "reuse at 14": 40.0, "FORA N 6": 20.0})
    for row, cost in zip(result.results.rows if result.results else [], (13.4, 18.2, 15.3, 9.5), strict=True):
        row["flops"] = {"evaluations": cost}
    text = results_page([result], {}, "spectrum reproduce methods", 0)
    for cell in (
        "| FORA | 30.0 (13.4) |",
        "| ToCa | 50.0 (18.2) |",
        "| reuse | **40.0** (15.3) |",
        "| FORA | **20.0** (9.5) |",
    ):
        assert cell in text


def test_the_claim_on_the_path_goes_step_by_step() -> None:
    labels = ("Spectrum α 3", "TaylorSeer N 6 O 1")
    near = by_hand("table5", dict.fromkeys(labels, 1.0), dict(zip(labels, (0.1, 0.2), strict=True)))
    far = by_hand("table5", dict.fromkeys(labels, 1.0), dict(zip(labels, (0.2, 0.1), strict=True)))
    assert claim("Spectrum (10) keeps", near) == ", ".join(f"{step}: **yes**" for step in (10, 20, 30, 40, 50))
    assert claim("Spectrum (10) keeps", far) == ", ".join(f"{step}: **no**" for step in (10, 20, 30, 40, 50))


def test_unknown_tables_and_models_are_refused(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(app, ["reproduce", "table9", "-o", str(tmp_path / "x")])
    assert wrong.exit_code != 0
    wrong = CliRunner().invoke(app, ["reproduce", "table1", "--model", "huge", "-o", str(tmp_path / "x")])
    assert wrong.exit_code != 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("name", "curves", "first"), [("fig5", 5, "λ 0.001"), ("fig6", 5, "M 2"), ("fig10", 3, "10")])
def test_a_sweep_is_drawn_as_a_plot(name: str, curves: int, first: str, tmp_path: Path) -> None:
    labels = {setting.label: setting.cell for setting in TABLES[name].settings if setting.cell}
    means: dict[str, float | None] = {label: float(i) for i, label in enumerate(labels)}
    failed = next(label for label, cell in labels.items() if first in cell)
    means[failed] = None
    assert draw_figure(by_hand(name, means), tmp_path) == f"{name}-flux.svg"
    plot = ElementTree.parse(tmp_path / f"{name}-flux.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    lines = list(plot.iter(f"{svg}polyline"))
    assert len(lines) == curves
    assert sorted(len(line.get("points", "").split()) for line in lines) == [4] + [5] * (curves - 1)
    ticks = [text.text for text in plot.iter(f"{svg}text") if text.get("class") == "tick"]
    assert first in ticks
    assert f"]({name}-flux.svg)" in results_page([by_hand(name, means)], {(name, "flux"): f"{name}-flux.svg"}, "", 0)


def test_a_table_that_does_not_run_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "flux", replace(MODELS["flux"], tiny="tiny-gone"))
    result = CliRunner().invoke(app, ["reproduce", "table5", "--pairs", "1", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.count("table5 did not run on tiny-gone: ") == 1
    assert "Not run: " in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_terminal_shows_rendered_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = "| setting | NFE |\n|---|---|\n| **Spectrum** | 14 |\n"
    print_markdown(table)
    assert capsys.readouterr().out == table + "\n"  # for a file or a pipe
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_markdown(table)
    shown = capsys.readouterr().out
    assert "Spectrum" in shown
    assert "|" not in shown
