"""The page of an evaluation: whole in one file, escaped, nothing fetched; in a real browser where there is one."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prompted import TEXTS, prompted, request

from spectrum_diffusion import load_default_pipeline
from spectrum_diffusion.bench.evaluate import Row, evaluate, examples, plots
from spectrum_diffusion.bench.evaluate.statistics import (
    ENOUGH,
    by_prompt,
    difference,
    estimate,
    expanded_tail,
    resampled_means,
    verdict,
)
from spectrum_diffusion.bench.evaluate.tables import escape_latex
from spectrum_diffusion.bench.prompts import Prompt
from spectrum_diffusion.errors import MissingPackageError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '</script><script>alert("1")</script><img src=http://example.com/x.png onerror=alert(2)>{{JS}} $x$ & |'
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tags with their attributes and text; checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rows() -> tuple[Row, ...]:
    return (*request().rows, Row("reuse", {"evaluated": [0, 1, 2, 3]}, EVIL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation whose prompts and labels are HTML, and of which one row fails."""
    from spectrum_diffusion.bench.evaluate import work

    folder, original = tmp_path_factory.mktemp("report"), work.sample

    def sample(pipe: Any, case: Any, call: Any, row: Any, **options: Any) -> Any:
        if row is not None and row.label == EVIL and case.prompt.text == TEXTS[0]:
            raise RuntimeError(EVIL)
        return original(pipe, case, call, row, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "sample", sample)
        prompts = (Prompt(EVIL, "<i>"), *(Prompt(text) for text in TEXTS))
        evaluate(prompted(), request(*rows(), prompts=prompts, model="<b>tiny</b>", path=True, command="a <b>"), folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_page_fetches_nothing(page: Page, folder: Path) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    text = (folder / "report.html").read_text("utf-8")
    assert not re.search(r"url\((?!\"\$\{)", text)  # only the script's own, with a data URI
    assert "@import" not in text


def test_text_is_escaped(page: Page) -> None:
    assert EVIL in page.text
    assert "<b>tiny</b>" in page.text
    assert not page.all("i")
    assert not page.all("b")
    assert "What failed" in page.text


def test_pictures_are_those_of_the_units(page: Page, folder: Path) -> None:
    units = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
    images = page.all("img")
    assert len(images) == len(units)
    kept = {(unit["row"], f"{unit['row']}: {unit['prompt']}"): unit for unit in units}
    for image in images:
        unit = kept[image["data-label"], image["alt"]]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
        assert np.array_equal(shown, np.asarray(Image.open(folder / unit["file"])))
        assert bool(image["data-difference"]) == (unit["row"] != "reference")


def test_every_row_and_metric_is_in_the_table_and_the_drawings(page: Page) -> None:
    heads = [attributes["data-value"] for attributes in page.all("th") if attributes.get("scope") == "row"]
    assert heads == ["reference", "fewer", "reuse", EVIL]
    names = [attributes.get("aria-label", "") for attributes in page.all("svg")]
    for cost in ("evaluations (NFE)", "seconds a call", "operations, in evaluations"):
        assert f"PSNR against {cost}" in names
    assert "PSNR, difference to fewer" in names
    assert "RMSE of the latents by step" in names
    assert "reuse: 3 of 6 evaluated" in names


def test_large_evaluations_show_a_fixed_number_of_examples() -> None:
    assert examples.evenly(list(range(1000)), 8) == [0, 143, 285, 428, 571, 714, 856, 999]
    assert examples.evenly([1, 2], 8) == [1, 2]


def test_large_pictures_are_shown_smaller() -> None:
    whole = Image.effect_noise((2000, 1000), 50).convert("RGB")
    small = examples._small(whole, examples.SIDE)
    assert small.size == (examples.SIDE, examples.SIDE // 2)
    assert examples._uri(small).startswith("data:image/jpeg")


def test_a_video_is_shown_as_a_strip_of_frames(tmp_path: Path) -> None:
    evaluate(prompted("wan"), request(prompts=(Prompt("panda"),)), tmp_path)
    video = Page((tmp_path / "report.html").read_text("utf-8"))
    for image in video.all("img"):
        strip = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        frames = int(image["data-frames"])
        assert frames > 1
        assert strip.width == frames * int(image["data-width"])


def test_tables_escape_what_they_are_written_in(folder: Path) -> None:
    table = (folder / "table.md").read_text("utf-8").splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table if line.startswith("|")}
    assert len(widths) == 1
    latex = (folder / "table.tex").read_text("utf-8")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
    assert escape_latex("50% of a_b & {c} \\ ~ ^ #1 $2") == (
        r"50\% of a\_b \& \{c\} \textbackslash{} \textasciitilde{} \textasciicircum{} \#1 \$2"
    )


# Intervals


def test_the_interval_of_many_values_is_the_closed_form() -> None:
    sample = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    interval = estimate(list(sample))
    error = sample.std() / np.sqrt(len(sample))
    assert interval.mean == pytest.approx(sample.mean())
    assert interval.low == pytest.approx(sample.mean() - 1.96 * error, abs=0.05 * error)
    assert interval.high == pytest.approx(sample.mean() + 1.96 * error, abs=0.05 * error)


def test_resampled_means_are_those_of_all_resamples() -> None:
    """Of two values: both, one of each, or the other, in a quarter, a half and a quarter of all."""
    values, counts = np.unique(resampled_means(np.array([0.0, 1.0]), 40_000, seed=0), return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (6, 2.571), (11, 2.228), (61, 2.0)]
)
def test_the_tail_is_widened_by_students_quantile(count: int, quantile: float) -> None:
    from statistics import NormalDist

    wanted = NormalDist().cdf(-quantile * (count / (count - 1)) ** 0.5)
    assert expanded_tail(count) == pytest.approx(wanted, rel=0.12)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        interval = estimate(list(generator.normal(0, 1, 8)), resamples=1000, seed=trial)
        held += interval.low <= 0 <= interval.high
    assert 0.91 <= held / 300 <= 0.99


def test_noise_is_no_win() -> None:
    """Two methods that differ by chance alone are told apart about once in twenty."""
    generator = np.random.default_rng(2)
    wins = 0
    for trial in range(200):
        gap = estimate(list(generator.normal(0, 1, 12) - generator.normal(0, 1, 12)), resamples=1000, seed=trial)
        wins += verdict(gap, True) in ("better", "worse")
    assert wins <= 20


def test_a_difference_is_paired_by_prompt_and_seed() -> None:
    """Hard and easy prompts differ by tens, the methods by one: only the pairs show it."""
    baseline = {(f"p{i}", seed): 10.0 * i + seed for i in range(8) for seed in (0, 1)}
    better = {case: value + 1.0 for case, value in baseline.items()}
    gap = difference(better, baseline)
    assert (gap.mean, gap.low, gap.high, gap.prompts) == (1.0, 1.0, 1.0, 8)
    assert verdict(gap, True) == "better"
    assert verdict(gap, False) == "worse"
    better["p0", 0] = None
    del better["p1", 1]
    assert difference(better, baseline).mean == 1.0


def test_seeds_of_one_prompt_are_one_value() -> None:
    assert by_prompt({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): None, ("c", 0): 5.0}) == {"a": 2.0, "c": 5.0}


def test_few_prompts_give_no_verdict() -> None:
    assert verdict(estimate([1.0] * (ENOUGH - 1)), True) == "too few prompts"
    assert verdict(estimate([1.0, 1.1] * ENOUGH), True) == "better"
    assert verdict(estimate([1.0, -1.0] * ENOUGH), True) == "no difference seen"
    single, empty = estimate([1.0]), estimate([])
    assert (single.mean, single.low, empty.mean) == (1.0, None, None)


# Drawings


def test_ticks_are_round_and_within() -> None:
    scale = plots.Scale([31.2, 47.9], 0, 100)
    assert scale.ticks() == [30.0, 35.0, 40.0, 45.0]
    assert scale(scale.low) == 0
    assert scale(scale.high) == 100
    assert plots.Scale([5.0], 0, 1).ticks()  # one value is a scale too


def test_names_do_not_overlap() -> None:
    places = plots._spaced([50, 50, 51, 290, 299])
    assert all(b - a >= plots.LINE for a, b in pairwise(places))
    assert max(places) <= plots.HEIGHT - plots.LINE


def test_of_too_many_points_the_front_is_named() -> None:
    rising = [plots.Point(f"r{x}", x, x, None, None, x) for x in range(plots.ROOM - 1)]
    below = [plots.Point(f"b{x}", x, x - 1.5, None, None, x) for x in range(1, 4)]
    assert _named(rising, True) == rising
    assert _named(rising + below, True) == rising
    assert _named(rising + below, False) == [rising[0], below[0]]  # what costs more is no lower


def _named(points: list[plots.Point], higher_is_better: bool) -> list[plots.Point]:
    drawn = plots.scatter(points, "", "", "", higher_is_better=higher_is_better)
    assert drawn.count('class="point"') == len(points)  # all are there, with their names to point at
    names = re.findall(r'class="name"[^>]*>([^<]*)<', drawn)
    return [point for point in points if point.label in names]


# In a browser


def answered(folder: Path, *, width: int = 1000, script: str) -> Any:
    """What a script of ours finds in the page, in a frame so wide: a window may not be as narrow as a phone's."""
    watch = "<script>window.problems=[];onerror=(m)=>{problems.push(String(m))};console.error=(m)=>problems.push(m);"
    watch += "addEventListener('securitypolicyviolation',(e)=>problems.push(e.blockedURI))</script>"
    ours = f"<script>addEventListener('load',()=>parent.postMessage(JSON.stringify((()=>{{{script}}})()),'*'))</script>"
    text = (folder / "report.html").read_text("utf-8").replace("<head>", f"<head>{watch}").replace("</body>", ours)
    (folder / "driven.html").write_text(text, encoding="utf-8")
    frame = "<script>onmessage = (event) => document.title = event.data</script>"
    frame += f'<iframe src="driven.html" style="width:{width}px;height:1000px;border:0"></iframe>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'browser'}",
    ]
    command += [
        "--window-size=1500,1100",
        "--virtual-time-budget=10000",
        "--dump-dom",
        (folder / "frame.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.S)
    assert title
    return json.loads(html.unescape(title[1]))


browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@browser
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_works_in_a_browser(width: int, folder: Path) -> None:
    script = """
    const $ = (query) => document.querySelector(query);
    const rows = () => [...document.querySelectorAll("tbody tr")].map((row) => row.children[0].dataset.value);
    const seen = {before: rows()};
    const heads = [...document.querySelectorAll("thead button")];
    heads[1].click(); seen.up = rows(); heads[1].click(); seen.down = rows();
    const shot = () => $(".method div").style.backgroundImage + $(".stage").dataset.view;
    seen.first = shot();
    const buttons = document.querySelectorAll(".thumbs button");
    buttons[2].click(); seen.second = shot();
    $("#view").value = "difference"; $("#view").dispatchEvent(new Event("input")); seen.difference = shot();
    $("#choice").value = 1; $("#choice").dispatchEvent(new Event("change"));
    seen.pressed = [...buttons].findIndex((button) => button.getAttribute("aria-pressed") === "true");
    $("#cut").value = 20; $("#cut").dispatchEvent(new Event("input"));
    seen.cut = $(".stage").style.getPropertyValue("--cut");
    seen.width = innerWidth;
    seen.wide = document.documentElement.scrollWidth - innerWidth;
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    seen.fetched = loaded.filter((name) => !name.startsWith("data:"));
    seen.focusable = [...document.querySelectorAll("button, select, input")].every((control) => control.tabIndex >= 0);
    seen.problems = problems;
    return seen;
    """
    page = answered(folder, width=width, script=script)
    assert page["width"] == width
    assert page["problems"] == []
    assert page["fetched"] == []
    assert page["wide"] <= 0  # the table scrolls in itself, the page does not
    assert page["focusable"]
    assert page["before"] == ["reference", "fewer", "reuse", EVIL]
    assert page["up"][-1] == "reference"
    assert page["down"][0] == "reference"
    assert page["first"] != page["second"] != page["difference"]
    assert page["pressed"] == 1
    assert page["cut"] == "20%"


@browser
def test_four_metrics_fit_a_laptop(tmp_path: Path) -> None:
    metrics = ("psnr", "ssim", "flip", "ssimulacra2")
    prompts = tuple(Prompt(f"{text} {number}") for text in TEXTS for number in range(ENOUGH // 2))
    pipe = load_default_pipeline()  # its images are large enough for all four
    pipe.set_progress_bar_config(disable=True)
    evaluate(pipe, request(prompts=prompts, metrics=metrics, call={"num_inference_steps": 6}), tmp_path)
    script = """
    const scroll = document.querySelector(".scroll");
    return {columns: scroll.querySelectorAll("th[scope=col]").length, cut: scroll.scrollWidth - scroll.clientWidth};
    """
    page = answered(tmp_path, width=1280, script=script)
    assert page["columns"] == 1 + 7 + len(metrics)
    assert page["cut"] <= 0


def test_a_missing_jinja_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "spectrum_diffusion.bench.evaluate.report")
    pipe = prompted()
    with pytest.raises(MissingPackageError, match=r"pip install 'spectrum-diffusion\[bench\]'"):
        evaluate(pipe, request(), tmp_path)
    assert pipe.calls == []
    assert not list(tmp_path.iterdir())


@browser
def test_the_frames_of_a_video_can_be_stepped_through(tmp_path: Path) -> None:
    evaluate(prompted("wan"), request(prompts=(Prompt("panda"),)), tmp_path)
    script = """
    const frame = document.querySelector("#frame"), shown = document.querySelector(".method div").style;
    const place = () => shown.backgroundPosition;
    const seen = {shown: !frame.closest("label").hidden, last: frame.max, first: place()};
    frame.value = frame.max; frame.dispatchEvent(new Event("input")); seen.end = place();
    seen.problems = problems;
    return seen;
    """
    page = answered(tmp_path, script=script)
    assert page["problems"] == []
    assert page["shown"]
    assert int(page["last"]) >= 1
    assert page["first"].startswith("0%")
    assert page["end"].startswith("100%")
