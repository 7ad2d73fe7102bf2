"""pytest plugin that runs each of diffusers' tests in three modes, and writes down how it ends in each.

- ``without``: nothing is enabled; this outcome is the reference.
- ``whole``: every pipeline is enabled from its first call on; every step is evaluated and its feature recorded.
- ``skipping``: around each call of a pipeline, the same call is made with real skipping and its result is checked. The
  test is given the result of a plain call after ``disable``, which must equal that of the plain call before ``enable``.

Outcomes go to ``--spectrum-log``, one JSON object a line. Tests that the log already names are left out.
"""

from __future__ import annotations

import functools
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
from _pytest.runner import runtestprotocol
from torch import nn
from torch.utils import _pytree as pytree

import spectrum_diffusion
from spectrum_diffusion import SpectrumError, Summary, UnsupportedModelError, register_method
from spectrum_diffusion.methods.taylor import Reuse

MODES = ("without", "whole", "skipping")
STEPS = 6
"""Steps of a skipping call: most tests take two, of which none would be skipped twice in a row."""
SECONDS = 120
"""The longest that one test may take."""

Plain = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Recorded(Reuse):
    """Evaluates every step, and records its feature as if a later one were skipped."""

    def evaluates(self, step: int, total: int) -> bool:
        return True

    def needs_feature(self, step: int, total: int) -> bool:
        return True


class Suite:
    """The mode of the moment, and the log.

    Args:
        log: file to which outcomes and calls are appended, one JSON object a line.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.mode, self.test = "without", ""
        self._inside = False  # within a call: the pipelines that a pipeline calls are part of its generation

    def write(self, **record: Any) -> None:
        with self.log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"test": self.test, "mode": self.mode, **record}) + "\n")

    def wrap(self, cls: type) -> None:
        """Let the calls of a pipeline's class go through this suite."""
        plain: Plain = cls.__call__

        @functools.wraps(plain)
        def __call__(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return plain(pipe, *args, **kwargs)
            put_in_evaluation_mode(pipe)  # in every mode, as dropout changes results
            if self.mode == "without":
                return plain(pipe, *args, **kwargs)
            self._inside = True
            try:
                return getattr(self, self.mode)(pipe, plain, args, kwargs)
            finally:
                self._inside = False

        cls.__call__ = __call__

    def whole(self, pipe: Any, plain: Plain, args: Any, kwargs: Any) -> Any:
        if "_spectrum_handle" not in vars(type(pipe)):
            self._enable(pipe, "recorded")
        return type(pipe).__call__(pipe, *args, **kwargs)

    def skipping(self, pipe: Any, plain: Plain, args: Any, kwargs: Any) -> Any:
        with same_random_numbers():
            expected = plain(pipe, *copied(args), **copied(kwargs))
        before = state_of(pipe)
        handle = self._enable(pipe, "reuse", warmup=1, interval=2, slope=0)
        if handle is not None:
            with same_random_numbers():
                sampled = type(pipe).__call__(pipe, *copied(args), **with_steps(copied(kwargs)))
            summary = handle.summary()
            spectrum_diffusion.disable(pipe)
            self.write(pipeline=type(pipe).__name__, summary=summary.to_dict())
            check_shapes(sampled, expected)
            check_sums(summary)
            assert state_of(pipe) == before, "disable(…) left something behind"
        after = plain(pipe, *args, **kwargs)
        if handle is not None:
            check_equal(after, expected)
        return after

    def _enable(self, pipe: Any, method: str, **options: Any) -> Any:
        """The handle, or None where the library refuses the pipeline."""
        try:
            try:
                return spectrum_diffusion.enable(pipe, method, **options)
            except UnsupportedModelError:
                return spectrum_diffusion.enable(pipe, method, site="output", **options)
        except SpectrumError as error:
            self.write(pipeline=type(pipe).__name__, refused=f"{type(error).__name__}: {error}")
            return None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        done = {json.loads(line)["test"] for line in lines}
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        self.test = item.nodeid
        for self.mode in MODES:
            self.write(outcome="crashed", message="")  # the last outcome counts
            item._initrequest()  # as pytest itself does before each run of a test
            with time_limit(SECONDS):
                reports = runtestprotocol(item, log=False, nextitem=item.parent)
            last = next((report for report in reports if report.outcome != "passed"), reports[-1])
            crash = getattr(last.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else str(last.longrepr or "")
            self.write(outcome=last.outcome, message=message[:1000])
            if last.outcome == "skipped":
                break  # for a reason that has nothing to do with the mode
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.test = report.nodeid
            self.write(outcome="not imported", message=str(report.longrepr)[-1000:])


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"the test took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def copied(value: Any) -> Any:
    """Arguments that a call may consume: generators, tensors, and containers of them are new ones."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def put_in_evaluation_mode(pipe: Any) -> None:
    """Many tests leave their models in training mode, in which nothing can be enabled."""
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Give the global generators back the state they had."""
    kept = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(kept[0])
    numpy.random.set_state(kept[1])


def with_steps(kwargs: dict[str, Any]) -> dict[str, Any]:
    steps = kwargs.get("num_inference_steps")
    return {**kwargs, "num_inference_steps": max(STEPS, steps)} if isinstance(steps, int) else kwargs


def state_of(pipe: Any) -> list[Any]:
    """What ``disable`` must restore: classes, and the attributes and hooks of every module."""
    modules = [m for c in pipe.components.values() if isinstance(c, nn.Module) for m in c.modules()]
    return [type(pipe), *((type(m), set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules)]


def leaves(output: Any) -> list[Any]:
    """The tensors and arrays of a pipeline's output, images as arrays."""
    flat = pytree.tree_leaves(output.to_tuple() if hasattr(output, "to_tuple") else output)
    arrays = (numpy.asarray(leaf) if hasattr(leaf, "getbands") else leaf for leaf in flat)
    return [torch.as_tensor(leaf) for leaf in arrays if isinstance(leaf, (torch.Tensor, numpy.ndarray))]


def check_shapes(sampled: Any, expected: Any) -> None:
    shapes, wanted = ([leaf.shape for leaf in leaves(output)] for output in (sampled, expected))
    assert shapes == wanted, f"skipping changed the shapes: {shapes}, without {wanted}"


def check_sums(summary: Summary) -> None:
    for stage in summary.stages or (summary,):
        counts = {name: branch.steps for name, branch in stage.branches.items()}
        assert max(counts.values()) == stage.steps, f"{stage.steps} steps, but {counts} by branch: {stage}"
        assert sum(counts.values()) == stage.calls, f"{stage.calls} calls, but {counts} by branch: {stage}"


def check_equal(after: Any, expected: Any) -> None:
    pairs = zip(leaves(after), leaves(expected), strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs), "not the same result after disable(…)"


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--spectrum-log", type=Path, required=True)


def pytest_configure(config: Any) -> None:
    suite = Suite(config.getoption("--spectrum-log"))
    config.pluginmanager.register(suite)
    register_method("recorded", Recorded)
    for name in dir(diffusers):
        if name.endswith("Pipeline") and "__call__" in vars(cls := getattr(diffusers, name)):
            suite.wrap(cls)
