"""The summary of a trace: its sums, its JSON and its text."""

from __future__ import annotations

import json
import random

import pytest
import torch

from spectrum_diffusion.core.summary import BranchSummary, Call, Summary, Trace, summarize


def trace_of(*calls: Call, **more) -> Trace:
    return Trace(method="spectrum", site="last_block", calls=list(calls), **more)


@pytest.fixture
def guided() -> Trace:
    """Six steps, two branches: 0, 1, 4 evaluated, 3 a fallback, 2 and 5 forecast, 5 in part by the second."""
    calls = []
    for step in range(6):
        action = {0: "evaluated", 1: "evaluated", 3: "fallback", 4: "evaluated"}.get(step, "forecast")
        reason = "new shape" if action == "fallback" else ""
        error = {2: 0.125, 5: 0.5}.get(step)
        calls.append(Call(step, "cond", action, reason, error=error))
        second = "partial" if step == 5 else action
        calls.append(Call(step, "uncond", second, reason and "other reason", first=False))
    return trace_of(*calls, history_bytes=3 * 2**20, earlier_loops=1)


def test_counts(guided):
    summary = summarize(guided)
    assert summary.steps == 6
    assert summary.evaluated == [0, 1, 3, 4]
    assert summary.nfe == 4
    assert summary.speedup == 1.5
    assert summary.calls == 12
    assert summary.branches == {"cond": BranchSummary(4, 2, 0, 1), "uncond": BranchSummary(4, 1, 1, 1)}
    assert summary.fallbacks == {3: "new shape"}
    assert summary.errors == {2: 0.125, 5: 0.5}
    assert summary.history_bytes == 3 * 2**20
    assert summary.milliseconds is None
    assert summary.loops == 2
    assert (summary.method, summary.site) == ("spectrum", "last_block")


@pytest.mark.parametrize("seed", range(20))
def test_sums_hold_for_any_trace(seed):
    rng = random.Random(seed)
    steps, branches = rng.randint(1, 30), [str(n) for n in range(rng.randint(1, 3))]
    calls = []
    for step in range(steps):
        action = rng.choice(["evaluated", "forecast", "partial", "fallback"])
        for n, branch in enumerate(branches):
            calls.append(Call(step, branch, action, "why" if action == "fallback" else "", first=n == 0))
    summary = summarize(trace_of(*calls))
    assert summary.steps == steps
    assert summary.calls == steps * len(branches)
    assert set(summary.branches) == set(branches)
    for branch, counted in summary.branches.items():
        of = [call.action for call in calls if call.branch == branch]
        assert counted.evaluated + counted.forecast + counted.partial == counted.steps == steps
        assert counted.evaluated == of.count("evaluated") + of.count("fallback")
        assert (counted.forecast, counted.partial) == (of.count("forecast"), of.count("partial"))
        assert counted.fallback == of.count("fallback") <= counted.evaluated
    assert set(summary.fallbacks) <= set(summary.evaluated)
    assert summary.nfe == len(summary.evaluated) == summary.branches["0"].evaluated


def test_a_step_counts_by_its_first_call():
    # A solver that calls twice a step: what the second call did leaves the step's own mark alone.
    summary = summarize(
        trace_of(
            Call(0, "0", "evaluated"),
            Call(0, "0", "forecast", first=False),
            Call(1, "0", "forecast"),
            Call(1, "0", "evaluated", first=False),
        )
    )
    assert (summary.steps, summary.evaluated, summary.calls) == (2, [0], 4)
    assert summary.branches["0"] == BranchSummary(evaluated=2, forecast=2, partial=0, fallback=0)


def test_the_first_reason_of_a_step_is_given():
    calls = [
        Call(2, "0", "fallback", "short history"),
        Call(2, "1", "fallback", "unknown branch", first=False),
    ]
    assert summarize(trace_of(*calls)).fallbacks == {2: "short history"}


@pytest.mark.parametrize(
    ("action", "ran"), [("evaluated", True), ("fallback", True), ("forecast", False), ("partial", False)]
)
def test_which_calls_ran_the_denoiser(action, ran):
    assert Call(0, "0", action).ran is ran


def test_nothing_called():
    summary = summarize(trace_of())
    assert (summary.steps, summary.nfe, summary.speedup, summary.branches) == (0, 0, 1.0, {})
    assert "0 steps, 0 evaluated" in str(summary)
    json.dumps(summary.to_dict())


def timed_trace(**more) -> Trace:
    actions = ["evaluated", "fallback", "partial", "forecast", "forecast"]
    calls = [Call(n, "0", a, milliseconds=lambda n=n: 10.0 * (n + 1)) for n, a in enumerate(actions)]
    return trace_of(*calls, Call(5, "0", "evaluated"), **more)


def test_times_by_what_was_done():
    assert summarize(timed_trace(timing=True, wall_seconds=0.2)).milliseconds == pytest.approx(
        {"evaluating": 60.0, "forecasting": 90.0, "outside": 50.0}
    )
    assert summarize(timed_trace(timing=True)).milliseconds == {"evaluating": 60.0, "forecasting": 90.0}
    assert summarize(timed_trace(timing=True, wall_seconds=0.01)).milliseconds["outside"] == 0.0
    assert summarize(timed_trace(timing=False, wall_seconds=0.2)).milliseconds is None


def test_timing_a_block(monkeypatch):
    clock = iter([1.0, 1.25])
    monkeypatch.setattr("spectrum_diffusion.core.summary.time.perf_counter", lambda: next(clock))
    with trace_of(device=torch.device("cpu"), timing=True).timed() as milliseconds:
        pass
    assert milliseconds() == pytest.approx(250.0)
    with trace_of(timing=False).timed() as nothing:
        pass
    assert nothing is None


def test_json_round_trip(guided):
    guided.timing, guided.wall_seconds = True, 1.5
    summary = summarize(guided)
    values = summary.to_dict()
    again = json.loads(json.dumps(values))
    assert again == values
    assert again["evaluated"] == [0, 1, 3, 4]
    assert (again["steps"], again["nfe"], again["speedup"], again["calls"]) == (6, 4, 1.5, 12)
    assert again["branches"]["uncond"] == {
        "evaluated": 4,
        "forecast": 1,
        "partial": 1,
        "fallback": 1,
        "steps": 6,
    }
    assert again["fallbacks"] == {"3": "new shape"}
    assert again["errors"] == {"2": 0.125, "5": 0.5}
    assert again["milliseconds"]["outside"] == 1500.0
    assert (again["history_bytes"], again["loops"]) == (3 * 2**20, 2)
    assert (again["method"], again["site"]) == ("spectrum", "last_block")


def test_text_has_the_numbers(guided):
    guided.timing, guided.wall_seconds = True, 1.5
    lines = str(summarize(guided)).splitlines()
    assert lines[0] == "spectrum at last_block: 6 steps, 4 evaluated, 1.50x fewer"
    assert lines[1].split() == ["evaluated", "0-1,", "3-4"]
    assert lines[2].split() == ["branch", "evaluated", "forecast", "partial", "fallback", "steps"]
    assert lines[3].split() == ["cond", "4", "2", "0", "1", "6"]
    assert lines[4].split() == ["uncond", "4", "1", "1", "1", "6"]
    text = "\n".join(lines[5:])
    assert "step 3: new shape" in text
    assert "3.0 MiB" in text
    assert "12 denoiser calls" in text
    assert "outside 1500 ms" in text
    assert "up to 0.5, at step 5" in text


@pytest.mark.parametrize(
    ("evaluated", "text"),
    [([0], "0"), ([0, 1, 2], "0-2"), ([0, 2, 4], "0, 2, 4"), ([0, 1, 5, 6, 9], "0-1, 5-6, 9"), ([], "")],
)
def test_evaluated_steps_as_ranges(evaluated, text):
    summary = Summary("m", "s", 10, evaluated, {}, {}, 10, 0, None, {})
    assert str(summary).splitlines()[1].strip() == f"evaluated  {text}".strip()
