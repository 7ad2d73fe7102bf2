"""The pages say what the code says, and the commands that they show exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks import results
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
    for path, text in method_pages().pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/method_pages.py"


def test_every_method_has_a_row_in_the_index() -> None:
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    packages = (ROOT / "docs" / "methods" / "other-packages.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"| `{name}` |" in packages if ":" in name else f"[`{name}`]({name}.md)" in index


@pytest.mark.parametrize("name", [name for name in METHODS if ":" not in name])
def test_every_option_is_explained(name: str) -> None:
    pages = method_pages()
    said = pages.descriptions(METHODS[name])
    assert set(METHODS[name].defaults()) <= set(said)


PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("training/*.md"),
        *ROOT.glob("models/**/*.md"),
    ]
)


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, _, fragment in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", path.read_text(encoding="utf-8")):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        assert not fragment or fragment in anchors(linked), f"{target}#{fragment}"


def test_the_readmes_table_is_of_the_results() -> None:
    page = (ROOT / "docs" / "results" / "index.md").read_text(encoding="utf-8").splitlines()
    (block,) = re.findall(
        r"<!-- results:begin -->\n(.*?)<!-- results:end -->",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    lines = [line for line in block.splitlines() if line]
    assert len(lines) > 5
    assert set(lines) <= set(page)


REPORT = """PSNR in dB.

## Every method on every model

| about 14 | tiny-flux |
|---|---|
| FORA | 37.5 (13.4) |
| ToCa | 37.4 (18.9) |

## The paper's claims

| the paper says | tiny-flux |

## Tables and figures

### table5: latent RMSE, FLUX.1-dev

Ours on tiny-flux, 32 images per row.

### fig3: images, FLUX.1-dev

Ours on tiny-flux, 32 images per row.

![images](fig3-flux.png)

### table8: latent RMSE, SDXL

Ours on tiny-sdxl, 32 images per row.
"""


def test_a_report_is_split_by_model() -> None:
    pages = results.pages(REPORT)
    assert list(pages) == ["index", "claims", "tiny-flux", "tiny-sdxl"]
    assert pages["index"].endswith("| ToCa | 37.4 (18.9) |")
    assert pages["claims"] == "| the paper says | tiny-flux |"
    assert pages["tiny-flux"].startswith("## table5: latent RMSE, FLUX.1-dev\n")
    assert pages["tiny-flux"].endswith("![images](../images/results/fig3-flux.png)")
    assert pages["tiny-sdxl"] == "## table8: latent RMSE, SDXL\n\nOurs on tiny-sdxl, 32 images per row."


def test_the_readme_shows_some_rows_of_the_overview() -> None:
    assert results.excerpt(REPORT) == "| about 14 | tiny-flux |\n|---|---|\n| FORA | 37.5 (13.4) |"
