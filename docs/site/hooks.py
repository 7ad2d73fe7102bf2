"""Hooks of MkDocs: pages from the files outside docs/ that pages link to, so that every link works in the site too.

The Markdown stays written for a reader of the repository, where README.md is the first page.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NAMED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the navigation that lie outside docs/."""
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)]*)?\))")
LEADING = re.compile(r"\A(\s*<!--.*?-->)+", re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|attr|data|mod|exc):(?=<code>)")
LANGUAGES = {".py": "python", ".csv": "text", ".toml": "toml", ".sh": "bash", ".yml": "yaml", ".ipynb": "json"}

_repository: dict[str, str] = {}
"""Page of the site → the file of the repository that it was made from."""


def on_config(config: Any) -> Any:
    """Complete the sections of the navigation that are folders: first the pages that their index links to, in order."""
    for section in config.nav:
        for pages in section.values():
            if isinstance(pages, list) and str(pages[0]).endswith("/index.md"):
                pages[1:] = pages_beside(pages[0])
    return config


def pages_beside(index: str) -> list[str]:
    """The other pages of an index's folder: those that it links to, then those that it does not."""
    folder = ROOT / "docs" / posixpath.dirname(index)
    names = [target for _, target, _ in LINK.findall((ROOT / "docs" / index).read_text(encoding="utf-8"))]
    names += sorted(path.name for path in folder.glob("*.md"))
    own = [name for name in dict.fromkeys(names) if "/" not in name and name.endswith(".md") and name != "index.md"]
    return [f"{posixpath.dirname(index)}/{name}" for name in own]


def page_of(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return NAMED.get(path, f"source/{path}" if path.endswith(".md") else f"source/{path}.md")


def linked(path: str) -> Iterator[str]:
    """Files and folders of the repository that a Markdown file links to."""
    for _, target, _ in LINK.findall((ROOT / path).read_text(encoding="utf-8")):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def content(path: str) -> str:
    """The Markdown of a page for a file or a folder of the repository."""
    file = ROOT / path
    if file.is_dir():
        rows = [f"- [{entry.name}]({file.name}/{entry.name})" for entry in sorted(file.iterdir()) if entry.is_file()]
        return "\n".join([f"# {path}", "", *rows])
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    return f"# {path}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n````\n"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that can be reached by links."""
    _repository.clear()
    _repository.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    waiting = [*NAMED, *_repository.values()]
    while waiting:
        path = waiting.pop()
        page = page_of(path)
        if not path.startswith("docs/") and page not in _repository:
            _repository[page] = path
            files.append(File.generated(config, page, content=content(path)))
        if path.endswith(".md"):
            waiting += [link for link in linked(path) if page_of(link) not in _repository and _is_page(link)]
        elif (ROOT / path).is_dir():
            waiting += [f"{path}/{entry.name}" for entry in (ROOT / path).iterdir() if entry.is_file()]
    return files


def _is_page(path: str) -> bool:
    return not path.startswith("docs/") and (ROOT / path).exists()


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages.

    Comments before the title go: MkDocs finds no title behind them, and would name the page after its file.
    """
    own = _repository[page.file.src_uri]
    base = posixpath.dirname(own)

    def rewrite(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(base, match[2]))
        if not (ROOT / path).exists():
            return match[0]  # MkDocs reports it
        target = os.path.relpath(page_of(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{target}{match[3]}"

    return LINK.sub(rewrite, LEADING.sub("", markdown))


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Drop the names of Sphinx's roles before code: Markdown has none."""
    return ROLE.sub("", html)
