from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spaces
from spaces.space import Choice, Fixed, LogRange, Range, Space, When
from spaces.written import narrowed, parameter_from

SPACES = tuple(f"spaces.{path.stem}" for path in sorted(Path(spaces.__file__ or "").parent.glob("[a-z]*.py")))
SPACE = Space(
    {
        "variant": Choice(("a", "b")),
        "lr": LogRange(1e-3, 1.0),
        "gamma": LogRange(1e-2, 1.0, or_zero=True, stage=2),
        "depth": Range(1, 5, integer=True),
        "only_b": Range(0.0, 1.0, when=When("variant", ("b",))),
    }
)


@given(st.integers())
def test_samples_lie_in_the_space_and_respect_conditions(seed: int) -> None:
    config = SPACE.sample(random.Random(seed))
    SPACE.check(config)
    assert ("only_b" in config) == (config["variant"] == "b")
    assert isinstance(config["depth"], int)


def test_or_zero_reaches_zero_and_the_range() -> None:
    drawn = [SPACE.sample(random.Random(i))["gamma"] for i in range(200)]
    assert 0.0 in drawn and any(v > 0 for v in drawn)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(0.5, 0.1), "range 0.5 to 0.1 is upside down"),
        (lambda: Range(1, 1), "upside down or empty"),
        (lambda: LogRange(0.0, 1.0), "must start above 0"),
        (lambda: Range(float("nan"), 1.0), "not finite"),
        (lambda: Range("low", 1.0), "'low' is not a number"),  # type: ignore[arg-type]
        (lambda: Range(0.5, 2, integer=True), "whole numbers"),
        (lambda: Choice(()), "at least one option"),
        (lambda: Choice((1, 1)), "twice"),
        (lambda: When("x", ()), "lists no value"),
        (lambda: Space({"b": Fixed(1, when=When("a", (1,)))}), "does not come before"),
        (lambda: Space({"a": Fixed(2), "b": Fixed(1, when=When("a", (1,)))}), "can never exist"),
    ],
)
def test_impossible_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_check_names_the_nearest_parameter_and_the_rule() -> None:
    good = {"variant": "a", "lr": 0.1, "gamma": 0.0, "depth": 2}
    SPACE.check(good)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        SPACE.check({**good, "gama": 0.1})
    with pytest.raises(ValueError, match=r"0\.001 to 1, log"):
        SPACE.check({**good, "lr": 2.0})
    with pytest.raises(ValueError, match="'depth' is missing"):
        SPACE.check({k: v for k, v in good.items() if k != "depth"})


def test_narrowing_by_scalar_list_and_table() -> None:
    space = narrowed(SPACE, {"lr": 0.1, "depth": [2, 3], "gamma": {"low": 0.1, "high": 0.2, "log": True}})
    assert space["lr"] == Fixed(0.1)
    assert space["depth"] == Choice((2, 3))
    assert space["gamma"] == Range(0.1, 0.2, log=True, stage=2)
    assert "only_b" not in narrowed(SPACE, {"variant": "a"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": "fast"}, "wrong type"),
        ({"lr": True}, "wrong type"),
        ({"variant": 3}, "wrong type"),
        ({"variant": {"low": 0, "high": 1}}, "range does not fit"),
        ({"lr": []}, "nothing to choose"),
        ({"lr": {"low": 1.0, "high": 0.1}}, "upside down"),
        ({"lr": {"low": 1.0}}, "needs low and high"),
        ({"lr": {"low": 0.1, "hihg": 1.0}}, "did you mean 'high'"),
        ({"dept": 3}, "did you mean 'depth'"),
        ({"variant": "a", "only_b": 0.5}, "only exists where variant"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrowed(SPACE, overrides)


def test_parameter_from_keeps_one_element_lists_fixed() -> None:
    assert parameter_from("x", [3], 1) == Fixed(3)


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (
            ("ray", "optuna", "mlflow", "torch", "numpy", "pydantic"),
            SPACES,
        ),
        (
            ("ray", "optuna", "mlflow", "sqlalchemy"),
            (
                "trainables.registry",
                "trainables.training.training",
                "trainables.inference.evaluation",
                "trainables.checkpoints",
            ),
        ),
    ],
)
def test_layers_import_with_the_platforms_blocked(blocked: tuple[str, ...], modules: tuple[str, ...]) -> None:
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n" + "\n".join(
        f"import {module}" for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
