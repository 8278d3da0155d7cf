"""The front in milliseconds of what is deployed: members exported and timed under onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.frontier.latency import measured
from search.study import Study
from tests.support.command import Run

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'routefront[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")


def test_members_are_timed_as_they_are_deployed(tiny: Study, tmp_path: Path, cli: Run) -> None:
    words = ("--axis", "latency", "--runtime", "onnxruntime", "--threads", "1", "--batch", "1", "--max-macs")
    least = min(point.macs for point in tiny.frontier())
    code, out, err = cli("frontier", "tiny", "--studies", tmp_path, "--trust", *words, str(int(2 * least)), "--json")
    assert code == 0, err
    points = json.loads(out)["points"]
    assert points and all(point["latency_ms"] > 0 and point["latency_ms_64"] is None for point in points)
    assert {point["latency_form"] for point in points} <= {"parts", "single", "int8"}
    times = [point["latency_ms"] for point in points]
    accuracies = [point["accuracy"] for point in points]
    assert times == sorted(times) and accuracies == sorted(accuracies)  # those that no other one beats, quickest first


def test_eight_bits_are_points_of_their_own(tiny: Study) -> None:
    """What answers otherwise has its own accuracy; of a network that is the cheapest two points are told."""
    (member,) = tiny.frontier(max_macs=min(point.macs for point in tiny.frontier()))
    whole, small = measured([tiny], [member], runtime="onnxruntime", batches=(1,))
    assert whole.latency_form in ("parts", "single") and small.latency_form == "int8"
    assert (whole.accuracy, whole.macs, whole.count) == (member.accuracy, member.macs, member.count)
    assert small.correct is not None and small.count and small.accuracy == small.correct / small.count
    assert abs(small.accuracy - whole.accuracy) < 0.1
    assert small.macs == pytest.approx(whole.macs, rel=0.1)
    assert small.latency_ms and whole.latency_ms and small.point_id == whole.point_id
    assert len(measured([tiny], [member], runtime="onnxruntime", batches=(1,), int8=False)) == 1
