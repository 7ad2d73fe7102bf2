"""The pages say what the code says, and the commands that they show exist."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import spectrum_diffusion
from benchmarks import results, skip_cost
from spectrum_diffusion import METHODS, make_method
from spectrum_diffusion.bench.reproduce.claims import LEGEND
from spectrum_diffusion.bench.reproduce.page import EXPLANATION, OVERVIEW_LEGEND, SWEEP_LEGEND
from spectrum_diffusion.methods.spectrum import FEWEST
from spectrum_diffusion.sites import SITES, denoisers

ROOT = Path(__file__).parents[1]


def script(name: str, folder: str = "docs") -> ModuleType:
    """A module of a folder that is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def method_pages() -> ModuleType:
    return script("method_pages")


def test_method_pages_are_up_to_date(method_pages: ModuleType) -> None:
    for path, text in method_pages.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/method_pages.py"


def test_every_method_has_a_row_in_the_index() -> None:
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    packages = (ROOT / "docs" / "methods" / "other-packages.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"| `{name}` |" in packages if ":" in name else f"[`{name}`]({name}.md)" in index


@pytest.mark.parametrize("name", [name for name in METHODS if ":" not in name])
def test_every_option_is_explained(method_pages: ModuleType, name: str) -> None:
    assert set(METHODS[name].defaults()) <= set(method_pages.descriptions(METHODS[name]))


def test_the_answers_give_the_evaluations_of_the_default() -> None:
    answers = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    counts = re.search(
        r"with the defaults, (\d+) steps evaluate (\d+), (\d+) evaluate (\d+), (\d+) evaluate (\d+)", answers
    )
    assert counts
    numbers = [int(number) for number in counts.groups()]
    default = make_method("spectrum")
    assert numbers[1::2] == [len(default.schedule(steps)) for steps in numbers[::2]]
    assert f"at least {FEWEST} evaluations" in answers


DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_design_names_every_part_and_site() -> None:
    package = ROOT / "src" / "spectrum_diffusion"
    folders = {path.parent.name for path in package.glob("*/__init__.py")} - {"metrics"}  # a public import path
    layers = script("test_imports", "tests").LAYERS
    for name in {name for layer in layers for name in layer if not name.startswith("_")} | folders:
        assert re.search(rf"`{name}(/|\.py)?`", DESIGN), name
    for name in SITES:
        assert f"| `{name}` |" in DESIGN, name


def test_lines_of_code_are_those_with_code() -> None:
    source = '''"""Two lines
of docstring."""

X = """one
two"""  # a comment


def f():
    """What it does."""
    # why
    return (
        1
    )
'''
    lines = script("lines")
    assert lines.code_lines(source) == 6
    assert set(re.findall(r"^\| ([\w, ]+) \| [\d,]+ \|", DESIGN, re.MULTILINE)) == set(lines.ORDER)


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


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """The hooks of the site add those of methods/ and results/ by themselves."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {page.name}$", navigation, re.MULTILINE), f"{page.name}: add it to mkdocs.yml"


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


def test_the_results_read_as_they_are_generated() -> None:
    """What a page says between its numbers is what the next run writes."""
    folder = ROOT / "docs" / "results"
    index = (folder / "index.md").read_text(encoding="utf-8")
    assert EXPLANATION.format(seed="0") in index
    assert OVERVIEW_LEGEND in index
    assert LEGEND in (folder / "claims.md").read_text(encoding="utf-8")
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(text in benchmarks for text in (skip_cost.INTRODUCTION, skip_cost.FLOOR, skip_cost.WEIGHTED_SUM))
    for path in folder.glob("tiny-*.md"):
        text = path.read_text(encoding="utf-8")
        sweeps = 0 if path.stem == "tiny-rough" else 3  # no model of the paper's
        assert text.count(SWEEP_LEGEND) == len(re.findall(r"^## fig(?:5|6|10):", text, re.MULTILINE)) == sweeps
        assert all(re.findall(r"^Ours on ([\w-]+), (?:32 images|8 videos) per row\.$", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["steps", "schedules", "sites"])
def test_drawings_are_up_to_date(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = script("drawings")
    kept = drawings.FOLDER / f"{name}.svg"
    monkeypatch.setattr(drawings, "FOLDER", tmp_path)
    getattr(drawings, name)()
    assert (tmp_path / kept.name).read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), "run: make docs"


def test_the_readme_is_short() -> None:
    shown = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown.split()) <= 900


@dataclass(frozen=True)
class Block:
    """A Python block of a page.

    Attributes:
        before: what runs first, from a comment `<!-- before: … -->` above the block.
        reason: why it does not run, from a comment `<!-- not-run: … -->` there.
        output: what stands below it, as its output.
    """

    page: str
    code: str
    before: str
    reason: str
    output: str


CARDS = [str(path.relative_to(ROOT)) for path in ROOT.glob("src/**/README.md")]
BLOCK = re.compile(
    r"(?:<!-- (?:before:(?P<before>.*?)|not-run:(?P<reason>.*?))-->\n)?"
    r"```python\n(?P<code>.*?)```(?:\n\n```\n(?P<output>.*?)```)?",
    re.DOTALL,
)


def blocks() -> list[Block]:
    """Every Python block of every page."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in [*PAGES, *CARDS]}
    groups = [(page, match.groupdict(default="")) for page, text in texts.items() for match in BLOCK.finditer(text)]
    blocks = [Block(page, **group) for page, group in groups]
    assert len(blocks) == sum(text.count("```python") for text in texts.values())
    return blocks


def parameters(chosen: list[Block]) -> list[Any]:
    """Blocks as parameters of a test. The cards of models that do not ship take long: videos, or guidance."""
    slow = [[pytest.mark.slow] if block.page.startswith("models/") else [] for block in chosen]
    return [pytest.param(b, marks=m, id=f"{b.page}:{i}") for i, (b, m) in enumerate(zip(chosen, slow, strict=True))]


BLOCKS = blocks()
RUN = [block for block in BLOCKS if not block.reason]


@pytest.mark.parametrize("block", parameters(RUN))
def test_code_of_the_pages_runs_and_prints_what_it_shows(
    block: Block, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoisers, "_registered", {})
    names: dict[str, Any] = {"__name__": "page"}
    exec(block.before, names)
    exec(block.code, names)
    assert not block.output or capsys.readouterr().out == block.output


def test_code_that_does_not_run_says_why() -> None:
    """A block runs unless it is marked: it needs weights from the Hub, or other tests run what it shows."""
    left_out = [block for block in BLOCKS if block.reason]
    assert all(re.search("hub|Hub|tests/", block.reason) for block in left_out)
    assert all(re.search(r"from_pretrained\(|PROGRAMS|openai|tune\(", block.code) for block in left_out)
    assert len(RUN) > len(left_out)


@pytest.mark.parametrize("block", parameters([b for b in BLOCKS if b.reason.strip() == "hub-weights"]))
def test_code_with_weights_of_the_hub_compiles_and_can_be_imported(block: Block) -> None:
    tree = ast.parse(block.code)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) >= 3
    exec(compile(ast.Module(imports, []), block.page, "exec"), {})
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).endswith(".enable"):
            make_method("spectrum", **{str(option.arg): ast.literal_eval(option.value) for option in call.keywords})


def documented() -> Iterator[tuple[str, object]]:
    """The public modules, classes and functions, and the public members that the classes define."""
    for name in spectrum_diffusion.__all__:
        member = getattr(spectrum_diffusion, name)
        if inspect.ismodule(member) or inspect.isclass(member) or inspect.isroutine(member):
            yield name, member
        if inspect.ismodule(member):
            own = [key for key in vars(member) if not key.startswith("_")]
            yield from ((f"{name}.{key}", vars(member)[key]) for key in own if inspect.isroutine(vars(member)[key]))
        if inspect.isclass(member):
            for key, attribute in vars(member).items():
                if not key.startswith("_") and (inspect.isroutine(attribute) or isinstance(attribute, property)):
                    yield f"{name}.{key}", attribute


@pytest.mark.parametrize(("name", "member"), documented())
def test_every_public_name_has_a_docstring(name: str, member: object) -> None:
    assert inspect.getdoc(member), name


def test_lowest_versions_are_those_of_pyproject() -> None:
    requirements = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest = script("versions", ".ci").lowest(requirements)
    assert [pin.partition("==")[0] for pin in lowest] == ["torch", "diffusers", "transformers"]
    assert all(f'"{pin.replace("==", ">=")}",' in requirements for pin in lowest)
    table = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(f"| {pin.partition('==')[2]}.0 |" in table for pin in lowest)
    assert 'requires-python = ">=3.10"' in requirements
    assert "| Python | 3.10 |" in table
    assert 'python: "3.10"' in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_the_citation_has_the_version_and_the_papers_title() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == spectrum_diffusion.__version__
    title = "Spectrum: adaptive spectral feature forecasting for diffusion sampling acceleration"
    assert citation["preferred-citation"]["title"] == title


@pytest.mark.parametrize("path", [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"], ids=str)
def test_configuration_of_services_is_valid_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_hooks_need_no_repository_beside_this_one() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in hooks["repos"]} == {"local"}


def imports() -> list[str]:
    """Every import of this package that a page shows."""
    pages = [ROOT / page for page in PAGES]
    lines = (line for page in pages for line in page.read_text(encoding="utf-8").splitlines())
    return sorted({line for line in lines if re.match(r"from spectrum_diffusion[\w.]* import ", line)})


@pytest.mark.parametrize("line", imports())
def test_imports_of_the_pages_work(line: str) -> None:
    exec(line, {})
