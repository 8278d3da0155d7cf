"""Measured latencies of operating points."""

from __future__ import annotations

from pathlib import Path

from trainables.data.datasets import load
from trainables.registry import get_method
from trainables.training.training import Training


def test_every_point_of_a_curve_has_a_latency_where_it_is_asked_for() -> None:
    method = get_method("skipnet")
    config = method.configure({"network": "resnet-8", "width": 0.25, "batch_size": 32})
    data = load("digits", root=Path("."), image_size=8, limit=64)
    told = {}
    for latency in (False, True):
        training = Training(method, config, data, epochs=1, latency=latency)
        told[latency] = training.step()["curve"]["points"]
    assert all("latency_ms" not in point for point in told[False])
    assert all(0 < point["latency_ms"] < 10_000 for point in told[True])
    for plain, timed in zip(told[False], told[True], strict=True):  # and nothing else differs
        assert {k: v for k, v in timed.items() if k != "latency_ms"} == plain
