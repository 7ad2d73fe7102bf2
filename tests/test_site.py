"""The documentation site builds without a warning, loads nothing from elsewhere, and covers everything public."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from extras import needs

import spectrum_diffusion
from spectrum_diffusion.methods import METHODS

needs("mkdocs", "material", "mkdocstrings")

ROOT = Path(__file__).parents[1]
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Elements that a browser loads by itself → their attribute."""


class References(HTMLParser):
    """What a page loads, what it links to, and the places in it that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded, self.links, self.anchors = set[str](), set[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if url := values.get(LOADING.get(tag, "")):
            self.loaded.add(url)
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        self.anchors |= {values[name] for name in ("id", "name") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, References]:
    return {page: References(page) for page in site.rglob("*.html") if page.name != "404.html"}


def test_pages_load_only_files_of_the_site(pages: dict[Path, References]) -> None:
    assert len(pages) > 50
    for page, references in pages.items():
        for url in references.loaded:
            assert not urlsplit(url).netloc, f"{page.name} loads {url}"
            assert (page.parent / unquote(urlsplit(url).path)).exists(), f"{page.name} loads {url}"


def test_stylesheets_and_scripts_import_nothing_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_between_pages_lead_somewhere(pages: dict[Path, References]) -> None:
    for page, references in pages.items():
        for link in references.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            assert target.exists(), f"{page.name}: {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{page.name}: {link}"


def test_files_that_pages_link_to_have_pages(site: Path) -> None:
    for page in ("index", "contributing", "changelog"):
        assert (site / f"{page}.html").exists(), page
    assert (site / "source" / "examples" / "own_loop.py.html").exists()
    assert (site / "source" / "LICENSE.html").exists() == ("](LICENSE)" in (ROOT / "README.md").read_text())


def test_the_reference_has_every_public_name(pages: dict[Path, References]) -> None:
    (anchors,) = [references.anchors for page, references in pages.items() if page.name == "api.html"]
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in spectrum_diffusion.__all__:
        assert f"::: spectrum_diffusion.{name}\n" in written, name
        assert any(anchor.split(".")[-1] == name for anchor in anchors), name


def test_every_method_and_every_result_is_in_the_navigation(pages: dict[Path, References]) -> None:
    (links,) = [references.links for page, references in pages.items() if page.name == "faq.html"]
    for folder in ("methods", "results"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert f"{folder}/{page.stem}.html" in links, page.name


def test_the_navigation_names_methods_as_they_are_called(site: Path) -> None:
    page = (site / "faq.html").read_text(encoding="utf-8")
    for name in (name for name in METHODS if ":" not in name):  # the others share a page
        (title,) = set(re.findall(rf'href="methods/{name}\.html"[^>]*>\s*<span[^>]*>\s*(.*?)\s*<', page))
        assert title == name


def test_the_search_covers_the_reference(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "load_default_pipeline" in index
