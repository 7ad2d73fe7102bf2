"""The paper's experiments as data, and a table run again on the model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spectrum_diffusion import make_method
from spectrum_diffusion.cli.app import app
from spectrum_diffusion.reproduce import MODELS, TABLES, paper
from spectrum_diffusion.reproduce.paper import paper_value, reported

SETTINGS = [(name, setting) for name, table in TABLES.items() for setting in table.settings]


@pytest.mark.parametrize(("table", "setting"), SETTINGS)
def test_evaluations_of_every_setting_are_those_of_table_6(table: str, setting: paper.Setting) -> None:
    method = make_method(setting.method, **setting.options)
    assert len(method.schedule(method.sampler_steps(50))) == setting.nfe  # type: ignore[attr-defined]


def test_every_number_of_the_paper_stands_beside_a_setting() -> None:
    """Each row of the paper's tables but the full run and TeaCache, whose thresholds its text doesn't give."""
    found = {
        (name, MODELS[key].name, paper_value(name, MODELS[key], setting, "psnr"))
        for name, table in TABLES.items()
        for key in table.models
        for setting in table.settings
    }
    for row in reported():
        if row["method"] not in ("50 steps", "TeaCache"):
            assert (f"table{row['table']}", row["model"], float(row["psnr"])) in found, row


@pytest.mark.parametrize(
    ("table", "model", "label", "psnr"),
    [
        ("table1", "flux", "Spectrum α 0.75", 24.32),
        ("table1", "sd3", "ToCa N 6", 9.53),
        ("table2", "wan", "TaylorSeer N 4 O 1", 19.46),
        ("table3", "sd3", "Spectrum adaptive", 15.68),
        ("table4", "flux", "TaylorSeer module", 17.93),
        ("table7", "flux", "Spectrum α 3", 22.29),
        ("table6", "flux", "FORA N 4", None),
        ("fig5", "flux", "Spectrum α 3, ridge 0.1", None),
    ],
)
def test_numbers_of_the_paper(table: str, model: str, label: str, psnr: float | None) -> None:
    (setting,) = (setting for setting in TABLES[table].settings if setting.label == label)
    assert paper_value(table, MODELS[model], setting, "psnr") == psnr


def test_labels_tell_settings_apart() -> None:
    for table in TABLES.values():
        labels = [setting.label for setting in table.settings]
        assert len(set(labels)) == len(labels)


def test_tables_on_the_small_models(tmp_path: Path) -> None:
    arguments = ["reproduce", "table5", "table8", "--pairs", "1", "-o", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert json.loads(result.stdout)["output"] == str(tmp_path / "results.md")
    assert "| Spectrum α 3, the paper's | 0.0040 | 0.0164 | 0.0358 | 0.0742 | 0.1674 |" in page
    (ours,) = (line for line in page.splitlines() if line.startswith("| Spectrum α 3 |") and "–" not in line)
    values = [float(cell) for cell in ours.split("|")[2:-1]]
    assert values == sorted(values)  # the runs drift apart
    results = json.loads((tmp_path / "flux" / "results.json").read_text(encoding="utf-8"))
    assert [row["nfe"]["mean"] for row in results["rows"]] == [50, 12, 10]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page


def test_unknown_tables_and_models_are_refused(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(app, ["reproduce", "table9", "-o", str(tmp_path / "x")])
    assert wrong.exit_code != 0
    wrong = CliRunner().invoke(app, ["reproduce", "table1", "--model", "huge", "-o", str(tmp_path / "x")])
    assert wrong.exit_code != 0
    assert not (tmp_path / "x").exists()
