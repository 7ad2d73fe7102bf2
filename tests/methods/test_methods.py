"""The methods by name: their defaults, their options, what they refuse, and methods of one's own."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields

import numpy as np
import pytest

from spectrum_diffusion.core.forecast import blend_weights, chebyshev_weights, reuse_weights, taylor_weights
from spectrum_diffusion.core.schedule import adaptive, for_speedup
from spectrum_diffusion.errors import InvalidOptionError
from spectrum_diffusion.methods import METHODS, SITES, Method, make_method, register_method

NAMES = [name for name in METHODS if ":" not in name]
"""Other packages' caches have a colon in their names; their options are tested in test_external_caches."""
ON_A_SCHEDULE = ["spectrum-blend", "paper", "reuse", "taylor"]
PAPER_14 = tuple(adaptive(50))


def default(method, name):
    return next(field.default for field in fields(method) if field.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_frozen_and_can_be_hashed(name):
    method = make_method(name)
    assert type(method) is METHODS[name]
    assert hash(method) == hash(make_method(name))
    assert method == make_method(name)
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, getattr(method, field.name))


def test_paper_is_the_paper_to_the_letter():
    paper = make_method("paper")
    assert paper.options() == {
        "interval": 2, "warmup": 5, "slope": 0.75, "site": "last_block", "time": "index", "degree": 4,
        "ridge": 0.1,
    }  # fmt: skip
    assert paper.schedule(50) == PAPER_14
    assert paper.window is None
    for target in set(range(50)) - set(PAPER_14):
        known = tuple(step for step in PAPER_14 if step < target)
        expected = chebyshev_weights(known, target, 50, 4, 0.1)
        np.testing.assert_array_equal(paper.weights(known, target, 50), expected)


def test_weights_follow_the_options():
    known = PAPER_14[:9]
    cases = [
        (make_method("spectrum-blend", degree=3, ridge=1.0, blend=0.3), blend_weights(known, 18, 50, 3, 1.0, 0.3)),
        (make_method("paper", degree=6, ridge=0.01), chebyshev_weights(known, 18, 50, 6, 0.01)),
        (make_method("reuse"), reuse_weights(known, 18)),
        (make_method("taylor", order=2), taylor_weights(known, 18, 2)),
        (make_method("spectrum-blend", blend=1.0), make_method("paper").weights(known, 18, 50)),
    ]
    for method, expected in cases:
        np.testing.assert_array_equal(method.weights(known, 18, 50), expected)


@pytest.mark.parametrize(
    ("name", "options", "window"), [("reuse", {}, 1), ("taylor", {}, 2), ("taylor", {"order": 3}, 4)]
)
def test_a_window_holds_all_that_the_weights_use(name, options, window):
    method = make_method(name, **options)
    assert method.window == window
    weights = method.weights(PAPER_14[:9], 18, 50)
    assert not weights[:-window].any()
    np.testing.assert_allclose(method.weights(PAPER_14[9 - window : 9], 18, 50), weights[-window:])


@pytest.mark.parametrize("name", ON_A_SCHEDULE)
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"interval": 6, "warmup": 1, "slope": 0}, range(0, 50, 6)),
        ({"slope": 3.0}, adaptive(50, slope=3.0)),
        ({"evaluated": [0, 1, 5, 20]}, [0, 1, 5, 20]),
        ({"speedup": 5}, for_speedup(50, 5)),
    ],
    ids=["uniform", "adaptive", "explicit", "speedup"],
)
def test_schedules_by_options(name, options, steps):
    method = make_method(name, **options)
    assert method.schedule(50) == tuple(steps)
    assert [step for step in range(50) if method.evaluates(step, 50)] == list(steps)
    assert method.sampler_steps(50) == 50


def test_steps_given_as_an_iterator_are_kept():
    method = make_method("spectrum-blend", evaluated=iter([0, 1, 5]))
    assert method.schedule(50) == method.schedule(10) == (0, 1, 5)
    assert hash(method) == hash(make_method("spectrum-blend", evaluated=[0, 1, 5]))


def test_explicit_steps_beyond_the_run_are_refused_when_the_run_is_known():
    method = make_method("spectrum-blend", evaluated=[0, 1, 30])
    assert method.schedule(31) == (0, 1, 30)
    with pytest.raises(InvalidOptionError, match="names step 30, but the run has 28 steps"):
        method.schedule(28)


def test_a_feature_is_needed_while_a_later_step_is_forecast():
    method = make_method("paper", evaluated=[0, 1, 4, 8, 9])
    assert [method.needs_feature(step, 10) for step in range(10)] == [True] * 7 + [False] * 3
    assert not any(make_method("paper").needs_feature(step, 5) for step in range(5))


@pytest.mark.parametrize("name", NAMES)
def test_options_are_json_and_make_the_same_method(name):
    known = {field.name for field in fields(METHODS[name])}
    for given in ({}, {"slope": 2.0, "site": METHODS[name].sites[-1]}, {"speedup": 3.0}, {"threshold": 0.5}):
        method = make_method(name, **{option: value for option, value in given.items() if option in known})
        options = json.loads(json.dumps(method.options()))
        assert make_method(name, **options) == method
        assert "evaluated" not in options


@pytest.mark.parametrize(
    "given",
    [{"interval": np.int64(3)}, {"warmup": np.int32(4)}, {"slope": np.float32(0.5)}, {"degree": np.int64(3)}],
)
def test_options_given_as_numpy_scalars_are_json(given):
    options = make_method("paper", **given).options()
    assert json.loads(json.dumps(options)) == options


def test_options_leave_out_a_spacing_that_is_not_used():
    assert "slope" not in make_method("paper", speedup=4).options()
    assert make_method("paper", evaluated=[0, 3]).options()["evaluated"] == [0, 3]
    assert "interval" not in make_method("paper", evaluated=[0, 3]).options()


@pytest.mark.parametrize(
    ("options", "steps", "taken"),
    [({}, 50, 14), ({"slope": 3.0}, 50, 10), ({}, 4, 4), ({"speedup": 4}, 50, 12), ({"speedup": 5}, 50, 10),
     ({"speedup": 3.3}, 28, 8), ({"speedup": 1}, 50, 50), ({"speedup": 100}, 50, 1)],
)  # fmt: skip
def test_fewer_steps_takes_as_many_steps_as_would_be_evaluated(options, steps, taken):
    method = make_method("fewer-steps", **options)
    assert method.sampler_steps(steps) == taken
    assert method.schedule(taken) == tuple(range(taken))
    assert all(method.evaluates(step, taken) for step in range(taken))
    assert not any(method.needs_feature(step, taken) for step in range(taken))


@pytest.mark.parametrize("steps", [9, 25, 50])
def test_fewer_steps_of_a_whole_ratio_takes_that_many(steps):
    taken = [make_method("fewer-steps", speedup=steps / n).sampler_steps(steps) for n in range(1, steps + 1)]
    assert taken == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("spectrun", "spectrum"), ("papper", "paper"), ("tailor", "taylor"), ("fewer_steps", "fewer-steps")],
)
def test_unknown_methods_suggest_the_nearest(name, nearest):
    with pytest.raises(InvalidOptionError) as caught:
        make_method(name)
    assert f"method={name!r} is unknown (did you mean {nearest!r}?)" in str(caught.value)
    assert all(known in str(caught.value) for known in METHODS)


@pytest.mark.parametrize("name", [None, 3, "", "zzzz", ["spectrum"], {"spectrum": 1}])
def test_things_that_are_no_name_of_a_method(name):
    with pytest.raises(InvalidOptionError) as caught:
        make_method(name)
    assert f"method={name!r} is unknown" in str(caught.value)
    assert "choose one of spectrum, paper" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("spectrum-blend", "rigde", "spectrum-blend has no option 'rigde' (did you mean 'ridge'?)"),
        ("spectrum-blend", "degrees", "(did you mean 'degree'?)"),
        ("paper", "blend", "paper has no option 'blend'"),
        ("taylor", "ordr", "taylor has no option 'ordr' (did you mean 'order'?)"),
        ("reuse", "degree", "reuse has no option 'degree'"),
        ("fewer-steps", "speed_up", "(did you mean 'speedup'?)"),
        ("spectrum", "degree", "spectrum has no option 'degree' (an option of paper, spectrum-blend): its options are"),
        ("spectrum", "xyzzy", "spectrum has no option 'xyzzy': its options are site, evaluated, speedup, warmup, gain"),
    ],
)
def test_unknown_options_suggest_the_nearest(name, option, message):
    with pytest.raises(InvalidOptionError) as caught:
        make_method(name, **{option: 1})
    assert message in str(caught.value)


WRONG = [
    ({"interval": 0}, "interval=0 is out of range: give a whole number ≥ 1"),
    ({"interval": 2.5}, "interval=2.5 is not an integer: give a whole number ≥ 1"),
    ({"interval": None}, "interval=None is not an integer"),
    ({"warmup": 0}, "warmup=0 is out of range: give a whole number ≥ 1"),
    ({"warmup": "5"}, "warmup='5' is not an integer"),
    ({"slope": -1}, "slope=-1 is out of range: give a finite number within 0 … ∞"),
    ({"slope": math.nan}, "slope=nan is out of range"),
    ({"slope": "steep"}, "slope='steep' is not a number"),
    ({"site": "zzz"}, "site='zzz' is unknown: choose one of last_block, output"),
    ({"site": None}, "site=None is unknown: choose one of"),
    ({"speedup": 0.5}, "speedup=0.5 is out of range: give a finite number within 1 … ∞"),
    ({"speedup": math.nan}, "speedup=nan is out of range: give a finite number within 1"),
    ({"speedup": math.inf}, "speedup=inf is out of range"),
    ({"speedup": "4x"}, "speedup='4x' is not a number"),
    ({"speedup": True}, "speedup=True is not a number"),
]
WRONG_STEPS = [
    ({"evaluated": []}, "evaluated=[] must start with step 0"),
    ({"evaluated": [1, 2]}, "evaluated=[1, 2] must start with step 0: nothing has been evaluated"),
    ({"evaluated": [0, 2, 1]}, "evaluated=[0, 2, 1] must increase, but step 1 follows 2: sort it"),
    ({"evaluated": [0, 0]}, "step 0 follows 0: sort it and drop repeats"),
    ({"evaluated": "0 1 2"}, "evaluated must be a list of step indices, got '0 1 2': pass integers such as"),
    ({"evaluated": 14}, "evaluated must be a list of step indices, got 14"),
    ({"evaluated": [0, 1.5]}, "evaluated step=1.5 is not an integer"),
    (
        {"evaluated": [0, 1], "speedup": 2},
        "evaluated and speedup both determine the evaluated steps: pass only one",
    ),
]
WRONG_OF_ONE = [
    ("paper", {"degree": -1}, "degree=-1 is out of range: give a whole number within 0 … 1000"),
    ("paper", {"degree": 4.0}, "degree=4.0 is not an integer"),
    ("paper", {"degree": True}, "degree=True is not an integer"),
    ("paper", {"ridge": -0.1}, "ridge=-0.1 is out of range: give a finite number within 0 … ∞"),
    ("paper", {"ridge": math.inf}, "ridge=inf is out of range"),
    ("spectrum-blend", {"ridge": None}, "ridge=None is not a number"),
    ("spectrum-blend", {"blend": 1.1}, "blend=1.1 is out of range: give a finite number within 0 … 1"),
    ("spectrum-blend", {"blend": -0.1}, "blend=-0.1 is out of range"),
    ("spectrum-blend", {"blend": "half"}, "blend='half' is not a number"),
    ("taylor", {"order": -1}, "order=-1 is out of range: give a whole number ≥ 0"),
    ("taylor", {"order": 1.5}, "order=1.5 is not an integer"),
    (
        "fewer-steps",
        {"evaluated": [0, 1]},
        "evaluates all of its steps and cannot take evaluated: pass",
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [(name, *row) for name in NAMES for row in WRONG]
    + [(name, *row) for name in ON_A_SCHEDULE for row in WRONG_STEPS]
    + WRONG_OF_ONE,
)
def test_wrong_values_are_refused_where_they_are_given(name, options, message):
    # Methods that have no such option refuse it by its name, which is tested above.
    if not set(options) <= {field.name for field in fields(METHODS[name])}:
        message = f"{name} has no option"
    if "site" in options:
        message = message.replace("last_block, output", ", ".join(METHODS[name].sites))
    with pytest.raises(InvalidOptionError) as caught:
        make_method(name, **options)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_speedup_above_the_range_is_refused_when_the_run_is_known():
    method = make_method("spectrum-blend", speedup=9)
    with pytest.raises(InvalidOptionError, match=r"speedup=9\.0 is out of reach of 50 steps"):
        method.schedule(50)


def test_sites():
    assert SITES[:2] == ("last_block", "output")
    for site in ("last_block", "output"):
        assert make_method("spectrum-blend", site=site).site == site


@dataclass(frozen=True, kw_only=True)
class Mean(Method):
    """The mean of all features."""

    def weights(self, evaluated, target, total):
        return np.full(len(evaluated), 1 / len(evaluated))


@dataclass(frozen=True, kw_only=True)
class Other(Mean):
    pass


@pytest.mark.usefixtures("own_names")
def test_a_method_of_ones_own():
    assert register_method("mean", Mean) is Mean
    method = make_method("mean", interval=4, slope=0)
    assert isinstance(method, Mean)
    assert method.schedule(12) == (0, 1, 2, 3, 4, 8)
    assert method.weights((0, 1, 2, 3), 5, 12).tolist() == [0.25] * 4
    with pytest.raises(InvalidOptionError, match="did you mean 'mean'"):
        make_method("meen")
    assert register_method("mean", Mean) is Mean  # the same once more, as a reloaded module does


@pytest.mark.usefixtures("own_names")
def test_names_that_are_taken():
    register_method("mean", Mean)
    with pytest.raises(InvalidOptionError, match="the name 'mean' belongs to Mean: choose another name"):
        register_method("mean", Other)
    with pytest.raises(InvalidOptionError, match="the name 'paper' belongs to Paper"):
        register_method("paper", Mean)
    assert METHODS["mean"] is Mean
    assert METHODS["paper"].__name__ == "Paper"


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("method", [None, 3, "paper", dict, Mean()], ids=repr)
def test_things_that_are_no_class_of_a_method(method):
    with pytest.raises(InvalidOptionError, match=r"is not a subclass of spectrum_diffusion\.Method: derive"):
        register_method("mine", method)
    assert "mine" not in METHODS


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("name", ["", None, 3])
def test_things_that_are_no_name(name):
    with pytest.raises(InvalidOptionError, match="cannot name a method: pass a non-empty string"):
        register_method(name, Mean)
    assert name not in METHODS


def test_tests_leave_the_names_as_they_were():
    assert [name for name in METHODS if ":" not in name] == NAMES


def test_a_method_without_weights_says_so():
    with pytest.raises(NotImplementedError):
        Method().weights((0,), 1, 2)


def test_a_warmup_beside_speedup_is_kept_and_is_among_the_options() -> None:
    method = make_method("spectrum-blend", speedup=8, warmup=2)
    assert method.schedule(50) == (0, 1, 3, 10, 23, 41)
    assert method.options()["warmup"] == 2
    assert "warmup" not in make_method("spectrum-blend", speedup=5).options()
    assert method != make_method("spectrum-blend", speedup=8, warmup=5) != make_method("spectrum-blend", speedup=8)
    assert make_method("fora", speedup=5).schedule(50) == tuple(for_speedup(50, 5))
    assert make_method("fora", speedup=5, warmup=1).schedule(50) == tuple(for_speedup(50, 5, 1))
    assert pickle.loads(pickle.dumps(method)) == method
    assert "speedup_warmup" not in {**type(method).defaults(), **method.options()}
    with pytest.raises(InvalidOptionError, match="would ignore warmup"):
        make_method("fewer-steps", speedup=5, warmup=2)


@pytest.mark.parametrize("option", ["interval", "slope"])
def test_speedup_beside_a_spacing_it_would_ignore_is_refused(option: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"speedup.*ignore {option}"):
        make_method("spectrum-blend", speedup=3, **{option: 3})


@pytest.mark.parametrize("option", [{"interval": 3}, {"warmup": 2}, {"slope": 0.5}])
@pytest.mark.parametrize("name", ["spectrum-blend", "paper", "taylor"])
def test_evaluated_steps_refuse_what_they_would_ignore(name: str, option: dict[str, float]) -> None:
    with pytest.raises(InvalidOptionError, match=f"evaluated lists the steps, so that {next(iter(option))} would be"):
        make_method(name, evaluated=[0, 1, 5], **option)


@pytest.mark.parametrize(("steps", "evaluated"), [(5, 5), (8, 8), (9, 8), (20, 8), (28, 8), (50, 14), (100, 28)])
def test_the_default_leaves_eight_evaluations_and_a_speedup_any_number(steps: int, evaluated: int) -> None:
    assert len(make_method("spectrum").schedule(steps)) == evaluated
    assert len(make_method("spectrum", speedup=1.6).schedule(steps)) == int(steps / 1.6)
