"""Write the tables of docs/compatibility.md: `python docs/compatibility.py`. Text outside the marks is written by hand.

The tables are of the installed diffusers and of the tests in this checkout.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "compatibility.md"
NEWEST = {"Python": "3.13", "PyTorch": "2.14.1", "diffusers": "0.42.1", "transformers": "5.24.0"}
"""What `make test-versions BOUNDS=newest` ran with last."""
TRIED = ("last_block", "module", "residual", "first_block", "tokens", "deep")
"""The sites that need something of a model; output, output_residual and sampler need nothing."""
RESULTS = {
    "AceStepPipeline": "works; refused at the sampler, as its guidance has momentum",
    "AnimateDiffPipeline": "works, with FreeNoise too; FreeInit is a loop for each iteration",
    "CosmosTextToWorldPipeline": "works, but its path is not corrected; refused at the sampler",
    "HunyuanVideoFramepackPipeline": "works; a loop for each section",
    "KandinskyV22CombinedPipeline": "works; prior and decoder are stages",
    "LTX2ImageToVideoPipeline": "works; video and audio are one denoiser",
    "LTX2Pipeline": "works; video and audio are one denoiser",
    "LTXConditionPipeline": "works; a warning says that it adds noise to the frames that are given",
    "LTXLatentUpsamplePipeline": "runs between two enabled pipelines",
    "SkyReelsV2DiffusionForcingPipeline": "works; with `ar_step` nothing is skipped, with a warning",
    "ScoreSdeVePipeline": "untouched, with a warning: its steps are unknown; refused at the sampler",
    "StableCascadeCombinedPipeline": "works; prior and decoder are stages",
    "StableDiffusionPanoramaPipeline": "works, although it restores its scheduler for each view",
    "StableDiffusionPix2PixZeroPipeline": "refused: it keeps attention maps and guides by gradients",
    "StableUnCLIPPipeline": "works; prior and decoder are stages",
    "UnCLIPPipeline": "works; three stages",
    "WuerstchenCombinedPipeline": "works; prior and decoder are stages",
}
"""Where there is more to say than that a pipeline works."""


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), denoisers=denoiser_table()), encoding="utf-8")


def page(text: str, *, denoisers: str | None = None) -> str:
    """The page with its tables as the code has them now; without ``denoisers``, which takes a while, theirs stays."""
    tables = {"versions": version_table(), "pipelines": pipeline_table(), "denoisers": denoisers}
    for name, table in tables.items():
        if table is not None:
            begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
            head, tail = text.split(begin)[0], text.split(end)[1]
            text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


def version_table() -> str:
    """The lowest versions of pyproject.toml, those of constraints.txt, and the newest that were tested."""
    project, pins = (ROOT / name for name in ("pyproject.toml", "constraints.txt"))
    lowest = dict(re.findall(r'"([\w-]+)>=([\d.]+)",', project.read_text(encoding="utf-8")))
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins.read_text(encoding="utf-8"), re.MULTILINE))
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', project.read_text(encoding="utf-8"))
    rows = [f"| Python | {python} | – | {NEWEST['Python']} |"]
    for shown, name in (("PyTorch", "torch"), ("diffusers", "diffusers"), ("transformers", "transformers")):
        rows.append(f"| {shown} | {lowest[name]}.0 | {pinned[name]} | {NEWEST[shown]} |")
    return "\n".join(["| package | lowest | full test suite | newest, core tests |", "|---|---|---|---|", *rows])


def denoiser_table() -> str:
    """A row for each denoiser class of the installed diffusers: sites that work, blocks, tail, test, note."""
    rows = [f"| {' | '.join(cells)} |" for cells in denoiser_rows()]
    head = [
        "| class | sites beside `output` and `sampler` | blocks | tail | in `tests/zoo` | note |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def denoiser_rows() -> Iterator[tuple[str, ...]]:
    """The cells of each class."""
    sys.path[:0] = [str(TESTS)]
    from zoo import VARIANTS, ZOO

    from spectrum_diffusion.sites.denoisers import DENOISERS, find_denoiser_classes

    variants: dict[str, list[str]] = defaultdict(list)
    for entry in VARIANTS.values():
        variants[entry.cls].append(entry.variant)
    for cls in find_denoiser_classes():
        row = DENOISERS[cls]
        tested = ", ".join(["yes", *variants[cls]]) if cls in ZOO else "no"
        yield cls, _sites(ZOO[cls].build()), _code(row.blocks), _code(row.tail), tested, row.reason or _note(row)


def _sites(model: object) -> str:
    """The sites that the model has."""
    from spectrum_diffusion.errors import SpectrumError
    from spectrum_diffusion.sites.denoiser import Denoiser

    works = []
    for site in TRIED:
        try:
            Denoiser.of(model, "denoiser").resolve(_method(site))  # type: ignore[arg-type]
            works.append(site)
        except SpectrumError:
            pass
    return ", ".join(f"`{site}`" for site in works) or "–"


def _method(site: str) -> object:
    from spectrum_diffusion import make_method

    own = {"residual": ("teacache", {"coefficients": [1.0, 0.0]}), "first_block": ("first-block-cache", {})}
    own |= {"tokens": ("toca", {}), "deep": ("deepcache", {})}
    name, options = own.get(site, ("taylor", {"site": site}))
    return make_method(name, **options)


def _note(row: object) -> str:
    return "blocks change the shape of the sample" if row.changes_shape else ""  # type: ignore[attr-defined]


def _code(paths: tuple[str, ...]) -> str:
    return ", ".join(f"`{path}`" for path in paths) or "–"


def pipeline_table() -> str:
    """A row for each pipeline class of diffusers that a test runs: where it does, and what came of it."""
    places = pipelines_of_tests()
    rows = [f"| {cls} | {', '.join(sorted(places[cls]))} | {RESULTS.get(cls, 'works')} |" for cls in sorted(places)]
    return "\n".join(["| class | tested as | result |", "|---|---|---|", *rows])


def pipelines_of_tests() -> dict[str, set[str]]:
    """Class → the entries of tests/pipelines and the other files that use it."""
    places: dict[str, set[str]] = defaultdict(set)
    entries = (TESTS / "pipelines/__init__.py").read_text(encoding="utf-8")
    for name, cls in re.findall(r'"([\w-]+)": PipelineEntry\(\s*d\.(\w+)', entries):
        places[cls].add(f"`{name}`")
    for path in sorted(TESTS.glob("**/test_*.py")):
        for cls in re.findall(r'(?:\bd\.|\bdiffusers\.|\bCase\(\s*")(\w+Pipeline)\b', path.read_text(encoding="utf-8")):
            if cls not in ("DiffusionPipeline", *(c for c in places if any(p.startswith("`") for p in places[c]))):
                places[cls].add(path.relative_to(ROOT).as_posix())
    return dict(places)


if __name__ == "__main__":
    main()
