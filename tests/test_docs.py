"""The pages say what the code says, and the commands that they show exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from spectrum_diffusion import METHODS

ROOT = Path(__file__).parents[1]


def method_pages():
    spec = importlib.util.spec_from_file_location("method_pages", ROOT / "docs" / "method_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_method_pages_are_up_to_date() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert method_pages().updated(page) == page, "run: python docs/method_pages.py"


@pytest.mark.parametrize("name", [name for name in METHODS if ":" not in name])
def test_every_option_is_explained(name: str) -> None:
    pages = method_pages()
    said = pages.descriptions(METHODS[name])
    assert set(METHODS[name].defaults()) <= set(said)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_of_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_method_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"`{name}`" in text or f"`{name.split(':')[0]}:…`" in text


def test_the_readmes_table_is_of_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    (block,) = re.findall(
        r"<!-- results:begin -->\n(.*?)<!-- results:end -->",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    lines = [line for line in block.splitlines() if line]
    assert len(lines) > 10
    assert set(lines) <= set(results)
