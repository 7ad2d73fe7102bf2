"""Options of methods, of enable and of tune: wrong types, NaN, flags and values out of range are refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from dummy import Dummy

import spectrum_diffusion
from spectrum_diffusion import METHODS, InvalidOptionError
from spectrum_diffusion.methods import Method, make_method, register_method
from spectrum_diffusion.methods.base import AnyMethod
from spectrum_diffusion.tune import tune

OURS = [name for name in METHODS if ":" not in name]
NOT_NUMBERS = [True, False, np.bool_(True), torch.tensor(True), "3", b"3", "yes", [], [1], {}, 1j, object()]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float64("nan"), 10**400]
WHOLE = [*NOT_NUMBERS, *NOT_FINITE[:-1], 0.5, -1]
REAL = [*NOT_NUMBERS, *NOT_FINITE, -1e-9]
SHARE = [*REAL, 1.0001, 2]
LIST = [True, "1,2", b"12", "", 3, [], {}, {1: 2}, {0, 1}, [True], ["1"], [math.nan], [[0]], [None], object()]
NAME = [True, 3, math.nan, "", "Output", "nowhere", ["output"], np.array(["output", "index"]), b"output", object()]

WRONG: dict[str, list[Any]] = {
    "site": [None, *NAME],
    "interval": [None, 0, *WHOLE],
    "warmup": [None, 0, *WHOLE],
    "slope": [None, *REAL],
    "evaluated": [*LIST, [1, 2], [0, 2, 1], [0, 0], [0, 1.5], [-1, 0], [0, math.inf]],
    "speedup": [*REAL, 0, 0.99],
    "time": [None, *NAME],
    "order": [None, *WHOLE],
    "degree": [None, *WHOLE],
    "branch": [None, *WHOLE],
    "limit": [None, 0, *WHOLE],
    "ridge": [None, *REAL],
    "threshold": REAL,
    "blend": [None, *SHARE],
    "gain": [None, *REAL],
    "tolerance": [*REAL, 0],
    "max_nfe": [0, *WHOLE],
    "contraction": [None, *SHARE],
    "retention": [None, *SHARE],
    "ratio": [None, *SHARE],
    "ratios": [*LIST, [1.0, -0.1]],
    "coefficients": LIST,
    "step_weights": [*LIST, [[math.nan]], [1.0]],
    "solver": NAME,
}
"""Values that no method with such an option may take; None where it is not the default."""

CASES = [
    (name, option, value)
    for name in OURS
    for option in METHODS[name].defaults()
    for value in WRONG[option] + ([None] if option == "threshold" and METHODS[name].defaults()[option] else [])
]


@pytest.mark.parametrize(("name", "option"), dict.fromkeys((name, option) for name, option, _ in CASES))
def test_wrong_values_are_refused_by_name(name: str, option: str) -> None:
    for value in (value for known, of, value in CASES if (known, of) == (name, option)):
        with pytest.raises(InvalidOptionError, match=option):
            make_method(name, **{option: value})


@pytest.mark.parametrize("name", OURS)
def test_defaults_given_by_hand_are_taken(name: str) -> None:
    method = make_method(name, **METHODS[name].defaults())
    assert method == make_method(name)


def test_every_option_has_wrong_values_here() -> None:
    assert {option for name in OURS for option in METHODS[name].defaults()} == WRONG.keys()


@pytest.mark.parametrize("flag", ["timing", "audit", "flops"])
@pytest.mark.parametrize("value", ["yes", "", 1, 0, None, math.nan, np.bool_(True), []], ids=repr)
def test_flags_of_enable_are_true_or_false(flag: str, value: Any) -> None:
    model = Dummy()
    with pytest.raises(InvalidOptionError, match=f"{flag}=.* is not a flag: pass True or False"):
        spectrum_diffusion.enable(model, **{flag: value})
    assert "forward" not in vars(model)


@pytest.mark.parametrize("value", [True, "3", math.nan, math.inf, 0.5, 0, [], ...], ids=repr)
def test_speedup_of_enable(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match="speedup="):
        spectrum_diffusion.enable(Dummy(), speedup=value)


@pytest.mark.parametrize("value", [3, "print", True], ids=repr)
def test_on_step_of_enable(value: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"on_step=.* is not callable"):
        spectrum_diffusion.enable(Dummy(), on_step=value)


WRONG_CALIBRATION: list[tuple[dict[str, Any], str]] = [
    ({"nfe": "14"}, "nfe"),
    ({"nfe": 0}, "nfe"),
    ({"nfe": []}, "nfe"),
    ({"nfe": [True]}, "nfe"),
    ({"seeds": "01"}, "seeds"),
    ({"seeds": 3}, "seeds"),
    ({"seeds": [0.5]}, "seed"),
    ({"seeds": []}, "seeds"),
    ({"prompts": "a fox"}, "prompts"),
    ({"prompts": []}, "prompts"),
    ({"prompts": 3}, "prompts"),
    ({"call": [("steps", 3)]}, "call"),
    ({"on_run": "print"}, "on_run"),
]


@pytest.mark.parametrize(("given", "named"), WRONG_CALIBRATION, ids=repr)
def test_options_of_tune(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError, match=named):
        tune(Dummy(), "first-block-cache", **{"prompts": ["a fox"], **given})


# Methods of one's own.


@dataclass(frozen=True, kw_only=True)
class Mean(Method):
    interval: int = 3
    warmup: int = 2
    slope: float = 0.0
    share: float = 1.0

    def weights(self, evaluated, target, total):
        return self.gives(len(evaluated))

    def gives(self, count):
        return [self.share / count] * count


def variant(gives: Any) -> type[Mean]:
    return dataclass(frozen=True, kw_only=True)(type("Variant", (Mean,), {"gives": lambda self, count: gives(count)}))


def sample(method: type[AnyMethod]) -> Any:
    register_method("mine", method)
    model = Dummy().eval()
    with spectrum_diffusion.enable(model, "mine", site="output") as handle, handle.run(6) as run, torch.no_grad():
        for step in range(6):
            run.step(step)
            model(torch.full((1, 4), 1.0))
    return handle.summary()


WRONG_WEIGHTS = {
    "too many": (lambda count: [0.1] * (count + 1), r"of shape \(3,\) for 2 evaluated steps: return 2 finite numbers"),
    "too few": (lambda count: [1.0], r"of shape \(1,\) for 2 evaluated steps"),
    "one number": (lambda count: 0.5, r"of shape \(\) for 2"),
    "a table": (lambda count: np.eye(count), r"of shape \(2, 2\) for 2"),
    "NaN": (lambda count: [math.nan] * count, "nan, nan.* return 2 finite numbers"),
    "infinite": (lambda count: torch.tensor([math.inf] * count), "inf, inf"),
    "None": (lambda count: None, "nan of shape|is not a list of numbers"),
    "words": (lambda count: ["half"] * count, "is not a list of numbers"),
    "ragged": (lambda count: [[1.0], [1.0, 2.0]], "is not a list of numbers"),
}


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_are_told_at_their_first_use(wrong: str) -> None:
    gives, message = WRONG_WEIGHTS[wrong]
    with pytest.raises(InvalidOptionError, match=f"weights of method 'mine' returned .*{message}"):
        sample(variant(gives))


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_lists_arrays_and_tensors_are_weights(kind: Any) -> None:
    summary = sample(variant(lambda count: kind([1.0 / count] * count)))
    assert (summary.evaluated, summary.nfe) == ([0, 1, 4], 3)


@dataclass(frozen=True, kw_only=True)
class Silent(Method):
    pass


@dataclass(frozen=True, kw_only=True)
class Aimless(AnyMethod):
    def weights(self, evaluated, target, total):
        return [1.0]


class Undecorated(Mean):
    strength: float = 0.5


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Silent, r"does not say how it forecasts: write weights\(self, evaluated, target, total\)"),
        (Method, "does not say how it forecasts"),
        (Aimless, r"does not say which steps it evaluates: write evaluates\(self, step, total\), or derive"),
        (Undecorated, r"declares strength, .* decorate the class with @dataclass\(frozen=True, kw_only=True\)"),
    ],
)
def test_incomplete_methods_are_refused_where_they_are_registered(method: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        register_method("mine", method)
    assert "mine" not in METHODS


def test_what_is_not_written_says_what_to_write() -> None:
    with pytest.raises(NotImplementedError, match=r"Silent does not say how it forecasts: write weights\(self"):
        Silent().weights((0,), 1, 2)
    with pytest.raises(NotImplementedError, match=r"Aimless does not say which steps it evaluates"):
        Aimless().evaluates(0, 1)


@pytest.mark.parametrize("name", OURS)
def test_our_own_methods_are_complete(name: str) -> None:
    assert register_method(name, METHODS[name]) is METHODS[name]
    assert all(option.init or option.default is None for option in fields(METHODS[name]))
