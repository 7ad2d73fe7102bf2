"""A summary in a notebook: the same facts as its text, escaped, without scripts."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import spectrum_diffusion
from spectrum_diffusion.core.html import strip
from spectrum_diffusion.core.summary import BranchSummary, Summary

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def summary() -> Summary:
    return Summary(
        method="spectrum",
        site="output",
        steps=6,
        evaluated=[0, 1, 3, 5],
        branches={"cond": BranchSummary(evaluated=4, forecast=2, partial=0, fallback=1)},
        fallbacks={3: "the history is too short"},
        calls=6,
        history_bytes=2**20,
        milliseconds=None,
        errors={},
    )


def bars(html: str) -> list[str]:
    """What each bar of the strip says."""
    svg = html[html.index("<svg") : html.index("</svg>") + len("</svg>")]
    return [str(title.text) for title in ElementTree.fromstring(svg).iter("title")]


def test_the_strip_shows_each_step() -> None:
    words = ["evaluated", "evaluated", "skipped", "fallback", "skipped", "evaluated"]
    assert bars(summary()._repr_html_()) == [f"step {step}: {word}" for step, word in enumerate(words)]


def test_the_table_has_the_facts_of_the_text() -> None:
    html = summary()._repr_html_()
    for fact in ("spectrum at output", "4 evaluated, 2 forecast", "the history is too short", "1.0 MiB at peak"):
        assert fact in html
    ElementTree.fromstring(html)  # well-formed


def test_names_and_reasons_are_escaped() -> None:
    branches = {HOSTILE: BranchSummary(evaluated=4, forecast=2, partial=0, fallback=0)}
    hostile = replace(summary(), method=HOSTILE, branches=branches, fallbacks={0: HOSTILE}, notes={HOSTILE: 2})
    html = replace(hostile, stages=(replace(hostile, stage=HOSTILE),))._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 5
    ElementTree.fromstring(html)


def test_each_stage_has_a_strip() -> None:
    stages = tuple(replace(summary(), stage=name) for name in ("prior", "decoder"))
    html = replace(summary(), stages=stages)._repr_html_()
    assert html.count("<svg") == 2
    assert re.findall(r"<b>(\w+)</b>", html) == ["prior", "decoder"]


def test_no_step_is_no_bar() -> None:
    assert "<rect" not in strip(0, [])


def test_a_real_generation_shows_its_evaluated_steps() -> None:
    pipe = spectrum_diffusion.load_default_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with spectrum_diffusion.enable(pipe, speedup=2.5) as handle:
        pipe("red apple", num_inference_steps=10, output_type="latent")
        shown = bars(handle.summary()._repr_html_())
    evaluated = [step for step, text in enumerate(shown) if text.endswith("evaluated")]
    assert len(shown) == 10
    assert evaluated == handle.summary().evaluated
