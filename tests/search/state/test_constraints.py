"""What counts as an operating point: limits, how far something misses them, what no network can meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from search.errors import InputError
from search.pareto.front import place_among, standings
from search.planning.creation import reference
from search.spec.study import StudySpec
from search.state.constraints import Constraints
from search.status.table import unmet_constraints
from trainables.contracts.network import Task


def test_misses_are_shares_of_the_limits() -> None:
    points = [
        {"accuracy": 0.9, "macs": 1e6, "latency_ms": 2.0},
        {"accuracy": 0.6, "macs": 3e6, "latency_ms": 5.0},
        {"accuracy": 0.8, "macs": 2e6},
    ]
    found = Constraints(min_accuracy=0.8, max_macs=2e6).misses(points, 10, 1)
    assert np.allclose(found, [0, 0.25 + 0.5, 0])
    assert np.allclose(Constraints(max_latency=2.0).misses(points, 10, 1), [0, 1.5, 1])
    assert np.allclose(Constraints(max_params=5, max_seconds=0.5).misses(points[:1], 10, 1), [1 + 1])
    assert not Constraints() and Constraints(max_params=5)


def test_a_curve_that_misses_less_stands_higher_and_below_all_that_miss_nothing() -> None:
    nothing = (np.array([np.nan]), np.array([1e6]))
    curves = [(np.array([0.5]), np.array([1e6])), nothing, (np.array([0.4]), np.array([1e6])), nothing]
    missed = [0.0, 0.3, 0.0, 0.1]
    places = [place_among(curves, i, (0.9, 1e8), missed) for i in range(4)]
    assert places == [2, 4, 1, 3]
    assert np.argsort(-standings(curves, (0.9, 1e8), missed)).tolist() == [2, 0, 3, 1]


def test_points_that_miss_are_on_no_front_and_the_nearest_is_named(story: Callable[..., Any]) -> None:
    s = story()
    s.spec = s.spec.model_copy(update={"constraints": s.spec.constraints.model_copy(update={"min_accuracy": 0.8})})
    s.events[0].payload["spec"] = s.spec.model_dump(mode="json")
    first, second = s.ask(0), s.ask(1, "skipnet")
    s.report(first, 1, [(0.5, 5e6), (0.7, 9e6)])
    s.report(second, 1, [(0.79, 4e6)])
    assert not s.state.front() and s.state.trials[first].missed[1] == pytest.approx(0.125)
    assert math.isnan(s.state.trials[second].arrays(1)[0][0])
    said = unmet_constraints(s.state)
    assert "accuracy of at least 80.0 %" in said and second in said and "79.0 % at 4M MACs" in said
    s.report(second, 3, [(0.85, 4e6), (0.7, 1e6)])
    assert s.state.front() == [(second, 3, 0)] and s.state.hypervolume > 0


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"max_params": "1k"}, "no network of static can have at most 1k parameters; the cheapest of"),
        ({"max_macs": 1000}, "can have at most 1k MACs"),
    ],
)
def test_what_no_network_of_the_space_can_meet_is_refused(constraints: dict[str, Any], said: str) -> None:
    spec = StudySpec.parse({"name": "a", "methods": {"static": {"network": "resnet-8"}}, "constraints": constraints})
    limits = Constraints.of(spec.constraints.model_dump())
    with pytest.raises(InputError, match=said):
        reference(spec.spaces(), Task(classes=10, size=16, channels=1), limits)
    assert reference(spec.spaces(), Task(classes=10, size=16, channels=1), Constraints(max_params=1e9))["macs"] > 0


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"min_accuracy": 1.5}, "constraints.min_accuracy = 1.5"),
        ({"max_macs": "-3"}, "constraints.max_macs"),
        ({"max_macs": "20X"}, "'20X' is not a number"),
        ({"max_latenzy": 3}, "did you mean 'max_latency'"),
        ({"max_seconds": "2 weeks"}, "is not a time"),
    ],
)
def test_bad_constraints_get_one_line(constraints: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        StudySpec.parse({"name": "a", "constraints": constraints, "methods": {"static": {}}})
    assert said in str(caught.value) and "\n" not in str(caught.value)
