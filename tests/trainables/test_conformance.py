"""One suite for every method of the registry: registering a method tests it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from routefront.testing import CHECKS, Case, conformance
from trainables.contracts.method import Method
from trainables.contracts.network import Inference, RoutedNetwork, Task
from trainables.registry import METHODS, get_method

torch.set_num_threads(1)

TINY: dict[str, dict[str, Any]] = {
    "imta": {"network": "msdnet-3", "growth": 4, "curve_points": 4},
    "decide": {"network": "pyramid-static-3"},  # without a variant; with one:
    **{f"decide {v}": {"network": "pyramid-3"} for v in METHODS["decide"].variants if v},
    "act": {"network": "preact-resnet-14"},
    "sact": {"network": "preact-resnet-14"},
    "multipath": {"network": "resnet-8-2", "width": 0.5},
    "exits": {"network": "resnet-8", "exits": 3, "curve_points": 4},
    "blocks": {"network": "resnet-8"},
}
DEFAULT = {"network": "resnet-8"}
ROOT = Path(__file__).resolve().parents[2]


def case_of(method: Method, variant: str) -> Case:
    """A small network of a variant; it comes first among its record's variants."""
    tiny = TINY.get(f"{method.name} {variant}", TINY.get(method.name, DEFAULT))
    task = Task(classes=5, size=(16, 20), channels=1)  # not square: nothing may take one edge for the other
    return Case(method=method, values={**tiny, "variant": variant}, task=task)


CASES = {
    " ".join(filter(None, (name, variant))): case_of(method, variant)
    for name, method in METHODS.items()
    for variant in method.variants
}


def test_every_file_is_registered_and_tested() -> None:
    files = {path.stem for path in (ROOT / "trainables" / "methods").glob("*.py")} - {"__init__"}
    assert files == {method.build.__module__.rpartition(".")[2] for method in METHODS.values()}  # a paper each
    for name in METHODS:
        assert (ROOT / "spaces" / f"{name}.py").is_file()
        assert (ROOT / "tests" / "trainables" / "methods" / f"test_{name}.py").is_file()
    with pytest.raises(ValueError, match="did you mean 'static'"):
        get_method("statc")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_every_method(check: Callable[[Case], None], case: Case) -> None:
    check(case)


# -- the suite has teeth ---------------------------------------------------------------------------


def broken(**changes: Any) -> Case:
    """AIG on a small network, changed."""
    return Case(method=dataclasses.replace(METHODS["aig"], **changes), values={"network": "resnet-8"})


def check(name: str) -> Callable[[Case], None]:
    return next(each for each in CHECKS if each.__name__ == name)


def test_a_method_that_charges_too_little_is_found() -> None:
    def build(config: Any, task: Any) -> RoutedNetwork:
        network = METHODS["aig"].build(config, task)
        infer = network.infer

        def cheap(*given: Any, **named: Any) -> Inference:
            found = infer(*given, **named)
            return dataclasses.replace(found, macs=found.macs - 1)

        network.infer = cheap
        return network

    with pytest.raises(AssertionError, match=r"MACs were computed and \d+ charged") as caught:
        check("hard_passes_cost_and_answer_what_they_say")(broken(build=build))
    assert "\n" not in str(caught.value)


def test_noise_of_the_process_is_found() -> None:
    def objective(network: Any, batch: Any, phase: Any) -> dict[str, torch.Tensor]:
        terms = METHODS["aig"].objective(network, batch, phase)
        return {**terms, "cross_entropy": terms["cross_entropy"] * torch.rand(())}

    with pytest.raises(AssertionError, match="draw noise from `generator`"):
        check("the_same_seed_trains_the_same")(broken(objective=objective))


def test_settings_that_change_nothing_are_found() -> None:
    def settings(config: Any) -> tuple[dict[str, Any], ...]:
        return ({"threshold": 0.5}, {"threshold": 0.5}, {"threshold": 0.5})

    with pytest.raises(AssertionError, match="knobs that change nothing"):
        check("a_sweep_is_a_loop_of_single_passes_that_costs_less")(broken(settings=settings))


def test_the_class_for_plug_ins_has_every_check() -> None:
    made = conformance(METHODS["static"], {"network": "resnet-8"})
    tests = [name for name in vars(made) if name.startswith("test_")]
    assert tests == [f"test_{each.__name__}" for each in CHECKS]
    for name in tests:
        getattr(made(), name)()
