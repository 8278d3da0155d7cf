"""The static baseline: its configuration and its one operating point."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spaces.static import PAPER
from trainables.contracts.method import config_dict
from trainables.contracts.network import Task
from trainables.inference.evaluation import curve
from trainables.methods.static import METHOD

torch.set_num_threads(1)


def test_the_published_setting_is_he_et_als() -> None:
    config = METHOD.configure(PAPER)
    (phase,) = METHOD.phases(config)
    assert [phase.optimiser.lr_at(share) for share in (0.1, 0.6, 0.9)] == pytest.approx([0.1, 0.01, 0.001])
    assert phase.optimiser.lr_at(0.0) < 0.02  # warm-up
    assert METHOD.configure(config_dict(config)) == config
    assert dataclasses.is_dataclass(config) and not hasattr(config, "__dict__")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"network": "resnet-9"}, r"network = 'resnet-9'.*nearest is resnet-8"),
        ({"shortcut": "C"}, r"shortcut = 'C'"),
        ({"variant": "sp"}, r"variant = 'sp'.*no variants"),
        ({"lr": -1.0}, r"lr = -1"),
        ({"gate": "rnn"}, r"static has no parameter 'gate'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure(values)


def test_its_curve_is_one_point_at_the_full_cost() -> None:
    network = METHOD.build(METHOD.configure({"network": "resnet-8"}), Task(size=16, channels=1))
    result = curve(METHOD, network, torch.randn(10, 1, 16, 16), torch.arange(10) % 10)
    (point,) = result.points
    assert point["macs"] == network.macs_full and point["macs_std"] == 0 and point["distinct_paths"] == 1
    assert result.diagnostics["unit_shares"] == [1.0] * 3
    assert network.training
