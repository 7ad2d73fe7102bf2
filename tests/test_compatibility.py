"""docs/compatibility.md says what the code and the tests say: versions, denoisers, pipelines, and tests that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from spectrum_diffusion.sites.denoisers import DENOISERS, find_denoiser_classes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
COMMAND = "is outdated: run `make docs`"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compatibility", ROOT / "docs/compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> dict[str, list[str]]:
    """The cells of a generated table by the first one."""
    table = PAGE.split(f"<!-- {name}:begin -->\n")[1].split(f"\n<!-- {name}:end -->")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def test_the_tables_of_versions_and_pipelines_are_up_to_date(tables: ModuleType) -> None:
    assert tables.page(PAGE) == PAGE, f"docs/compatibility.md {COMMAND}"


def test_the_table_has_every_denoiser_class_of_the_installed_diffusers() -> None:
    known = rows("denoisers")
    missing = [name for name in find_denoiser_classes() if name not in known]
    assert missing == [], f"docs/compatibility.md lacks {', '.join(missing)}: run `make docs`"
    for name, cells in known.items():
        row = DENOISERS[name]
        expected = [", ".join(f"`{path}`" for path in paths) for paths in (row.blocks, row.tail)]
        assert cells[1:3] == expected, f"the row of {name} in docs/compatibility.md {COMMAND}"


@pytest.mark.slow
def test_the_sites_of_every_denoiser_are_up_to_date(tables: ModuleType) -> None:
    assert tables.page(PAGE, denoisers=tables.denoiser_table()) == PAGE, f"docs/compatibility.md {COMMAND}"


@pytest.mark.parametrize("page", ["docs/compatibility.md", "docs/faq.md"])
def test_tests_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / path).is_file(), f"{page} names {path}, which does not exist"
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, f"{page} names {path}::{name}, which does not exist"
