"""What `routefront doctor` says of GPUs: figures of this machine's, and what was never measured on any."""

from __future__ import annotations

import pytest
import torch

from search.catalogue import doctor
from search.catalogue.doctor import Check
from tests.support.simcuda import sim
from trainables.worker import gpus


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_is_proven_and_what_is_not() -> None:
    found = Check("GPU self-test", doctor._self_test, needed=doctor._has_gpu()).run()
    assert found["state"] == "missing"
    assert "no GPU here; proven on a simulated GPU only" in found["says"]
    assert "never measured on a card" in found["says"]


def test_with_a_gpu_figures_stand_beside_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("static", {"network": "resnet-8", "width": 0.25, "batch_size": 8})
    monkeypatch.setattr(gpus, "SELF_TEST", small)
    with sim():
        found = Check("GPU self-test", doctor._self_test).run()
    assert found["state"] == "ok", found
    assert "static on resnet-8, batch 8: a step " in found["says"] and "never measured on a card" in found["says"]
