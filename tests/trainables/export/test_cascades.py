"""Cascades outside: settings of one network with exits go on where they stopped, as ours do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables.contracts.network import RoutedNetwork, Task
from trainables.inference.cascade import Cascade, Step
from trainables.normalisation import Normalisation
from trainables.registry import get_method

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'routefront[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")

from trainables.export.cascade import Member, write_cascade
from trainables.export.routefront_runner import CascadeRunner, answered, doubt
from trainables.inference import rules
from trainables.inference.predictions import probabilities

NORMAL = Normalisation((0.5,) * 3, (0.25,) * 3)


def _network(method: str, classes: int, **values: Any) -> RoutedNetwork:
    torch.manual_seed(1)
    chosen = get_method(method)
    network = chosen.build(chosen.configure(values), Task(classes=classes, size=16, channels=3)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    return network


@pytest.mark.parametrize(
    ("kind", "answer", "classes"),
    [("probability", "last", 4), ("margin", "mean", 4), ("entropy", "last", 20), ("probability", "weighted", 20)],
)
def test_a_cascade_outside_decides_as_ours(kind: str, answer: str, classes: int, tmp_path: Path) -> None:
    exits = _network("imta", classes, network="msdnet-3", width=0.25)
    plain = _network("static", classes, network="resnet-8", width=0.25)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), np.uint8)
    images = (images * np.logspace(-1, 0, 40)[:, None, None, None]).astype(np.uint8)
    knobs: list[dict[str, Any]] = [{"thresholds": [0.3, 0.5]}, {"thresholds": [0.7, 0.8]}, {}]
    networks, temperatures = [exits, exits, plain], [1.0, 1.3, 0.8]
    ours = Cascade([Step(n, NORMAL, k, t) for n, k, t in zip(networks, knobs, temperatures, strict=True)], kind, answer)
    assert ours.runs == [[0, 1], [2]]
    members = [
        Member(folder, network, NORMAL, each, 0.5, 1e6, {"temperature": t, "point_id": folder})
        for folder, network, each, t in zip(("a", "a", "b"), networks, knobs, temperatures, strict=True)
    ]
    tried = [[0.0, 0.0], [0.4, 0.3], [0.6, 0.6], [0.0, 3.0], [3.0, 3.0]]
    settings = [{"knobs": {"thresholds": t}, "accuracy": 0.5, "macs": 1e6} for t in tried]
    names = [str(k) for k in range(classes)]
    how = {"kind": kind, "answer": answer, "settings": settings, "promoted": settings[1]["knobs"], "classes": names}
    write_cascade(tmp_path, members, ours.runs, model={}, **how)
    runner = CascadeRunner(tmp_path)
    seen = set()
    for thresholds in tried:
        theirs = ours.infer(torch.from_numpy(images), thresholds)
        mine = runner.predict(images, values={"thresholds": thresholds})
        assert mine["exit"].tolist() == theirs.member.tolist()
        assert np.array_equal(mine["path"], theirs.path)
        assert np.array_equal(mine["macs"], theirs.macs)
        assert np.allclose(mine["probabilities"], theirs.probabilities, atol=2e-3)
        seen |= set(mine["exit"].tolist())
    assert seen == {0, 1, 2}
    nothing = runner.predict(images[:0])
    assert nothing["probabilities"].shape == (0, classes)


@pytest.mark.parametrize("classes", [3, 40])
def test_the_runner_s_arithmetic_is_that_of_the_rules(classes: int) -> None:
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(0)) * 3
    for temperature in (1.0, 0.7):
        theirs = rules.scaled(probabilities(logits), temperature)
        mine = answered(logits.numpy(), temperature)
        assert np.allclose(mine, theirs, atol=1e-3)
        for kind in rules.DOUBTS:
            assert np.array_equal(doubt(theirs, kind), rules.doubt(theirs, kind))
