"""Every method through a whole training on a GPU, or by the rules of a simulated one: faults, waits, launches.

Where there is a GPU the same trainings run on it: a capture itself refuses a step that waits. Launches are not counted
there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import on_device
from tests.support.simcuda import Log, sim
from trainables.registry import METHODS, get_method


@pytest.mark.parametrize("case", on_device.CASES)
def test_a_whole_training_on_the_device(case: str, tmp_path: Path) -> None:
    """No call that a device refuses; no wait more than a phase declares, none that can be captured; no launch more.

    Who adds a launch runs ``python -m tests.support.on_device --write`` and says why.
    """
    name, values = on_device.CASES[case]
    if torch.cuda.is_available():
        on_device.go(name, values, Log(), tmp_path)
        return
    with sim() as log:
        found = on_device.go(name, values, log, tmp_path)
    assert not log.faults
    method, known = get_method(name), on_device.table()[case]
    phases = {phase.name: phase for phase in method.phases(method.configure(values))}
    assert found.keys() == known.keys() == phases.keys()
    for phase, counts in found.items():
        assert counts["waits"] <= counts["declared"], f"{phase} waits {counts['waits']} times a step: {counts}"
        assert counts["declared"] == known[phase]["declared"] and not (phases[phase].capturable and counts["waits"])
        assert counts["launches"] <= known[phase]["launches"], f"{phase}: {counts}, at most {known[phase]}"


def test_every_method_is_among_them() -> None:
    assert {name for name, _ in on_device.CASES.values()} == set(METHODS)
