"""The two axes of a study and what stands for their figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.contracts.objective import Axis, Objective


def _objective(**changes: dict) -> Objective:
    merit = {"name": "rmse", "unit": "K", "best": 0.0, "worst": 8.0, "maximise": False}
    cost = {"name": "ms", "best": None, "worst": 50.0, "maximise": False, "log": True}
    return Objective(
        merit=Axis(**{**merit, **changes.get("merit", {})}), cost=Axis(**{**cost, **changes.get("cost", {})})
    )


def test_by_default_accuracies_and_macs_stand_for_themselves() -> None:
    usual = Objective()
    assert usual.usual
    assert (usual.accuracy_of(0.75), usual.macs_of(3e6)) == (0.75, 3e6)
    assert (usual.merit_at(0.1 + 0.2), usual.cost_at(7.3e6)) == (0.1 + 0.2, 7.3e6)


@pytest.mark.parametrize(
    "merit",
    [
        {"best": 0.0, "worst": 8.0, "maximise": False},
        {"best": 1.0, "worst": -1.0, "maximise": True},
        {"best": 1e-4, "worst": 10.0, "maximise": False, "log": True},
        {"best": 1e4, "worst": 2.0, "maximise": True, "log": True},
    ],
)
@given(place=st.floats(0, 1))
def test_a_better_merit_is_a_higher_accuracy_and_comes_back(merit: dict, place: float) -> None:
    objective = _objective(merit=merit)
    value = objective.merit.at(place)
    accuracy = objective.accuracy_of(value)
    assert 0 <= accuracy <= 1
    assert math.isclose(1 - accuracy, place, abs_tol=1e-9)
    assert math.isclose(objective.merit_at(accuracy), value, rel_tol=1e-9, abs_tol=1e-9)
    assert objective.accuracy_of(objective.merit.at(min(1.0, place + 0.1))) <= accuracy


@pytest.mark.parametrize(
    ("cost", "cheap", "dear"),
    [
        ({}, 2.0, 3.0),
        ({"worst": 10.0, "maximise": True}, 900.0, 30.0),  # images a second
        ({"best": 0.0, "worst": 100.0, "log": False}, 0.0, 40.0),
        ({"best": 100.0, "worst": -5.0, "log": False, "maximise": True}, 99.0, -3.0),
    ],
)
def test_a_cheaper_cost_stands_lower_and_comes_back(cost: dict, cheap: float, dear: float) -> None:
    objective = _objective(cost=cost)
    low, high = objective.macs_of(cheap), objective.macs_of(dear)
    assert 0 < low < high <= objective.reference["macs"]
    assert math.isclose(objective.cost_at(low), cheap, abs_tol=1e-9)
    assert math.isclose(objective.cost_at(high), dear, rel_tol=1e-9)


def test_figures_beyond_the_bounds() -> None:
    objective = _objective()
    assert objective.accuracy_of(100.0) == 0.0  # no worse than the worst
    with pytest.raises(ValueError, match=r"rmse = -0.5 is better than the best that \[objective\] names \(0\)"):
        objective.accuracy_of(-0.5)
    with pytest.raises(ValueError, match="rmse = nan is no finite number"):
        objective.accuracy_of(math.nan)
    with pytest.raises(ValueError, match='ms = 0: a cost is above 0; where it may be 0, say scale = "linear"'):
        objective.macs_of(0.0)
    with pytest.raises(ValueError, match="the axis has scale"):
        _objective(merit={"best": 0.1, "log": True}).accuracy_of(-1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best": 8.0, "worst": 8.0}, "the best must lie below the worst of an axis that is minimized"),
        (
            {"best": 0.0, "worst": 1.0, "maximise": True},
            "the best must lie above the worst of an axis that is maximized",
        ),
        ({"worst": math.inf}, "bounds must be finite"),
        ({"best": 0.0, "log": True}, 'an axis with scale = "log" has bounds above 0'),
    ],
)
def test_bounds_that_contradict_each_other(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _objective(merit=changes)


def test_axes_travel_as_plain_values() -> None:
    objective = _objective(cost={"best": 1.0, "log": False})
    assert Objective.of(objective.record()) == objective
