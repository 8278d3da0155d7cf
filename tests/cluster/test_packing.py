"""How many trials share a device: by throughput, memory and cores."""

from __future__ import annotations

import pytest

from cluster.packing import on_cpus, on_gpu, trials_an_hour
from cluster.resources import Node

GAIN = {1: 100.0, 2: 180.0, 4: 240.0, 8: 246.0}


def test_the_fewest_trials_that_reach_the_best_throughput_share_a_gpu() -> None:
    packing = on_gpu(GAIN, 2e9, 40e9, 16)
    assert (packing.per_device, packing.gpus_per_trial, packing.cpus_per_trial) == (4, 0.25, 4)
    assert packing.rate == pytest.approx(240 / 4 / 100) and packing.limit.startswith("the GPU's arithmetic")


@pytest.mark.parametrize(
    ("memory", "cpus", "count", "limit"),
    [
        (15e9, 16, 2, "the GPU's memory"),
        (2e9, 2, 2, "CPUs: 2 a GPU"),
        (30e9, 16, 1, "the GPU's memory"),
        (2e9, 1, 1, "CPUs: 1 a GPU"),
    ],
)
def test_what_limits_the_trials_on_a_gpu(memory: float, cpus: float, count: int, limit: str) -> None:
    packing = on_gpu(GAIN, memory, 40e9, cpus)
    assert packing.per_device == count and packing.limit == limit


def test_more_trials_than_were_measured_are_not_promised() -> None:
    packing = on_gpu({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}, 1e9, 80e9, 64)
    assert packing.per_device == 8 and packing.limit == "more than 8 trials at once were not measured"


def test_a_trial_that_no_gpu_holds_is_said_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"one trial takes 50\.0 GB, the GPU has 40\.0 GB"):
        on_gpu(GAIN, 50e9, 40e9, 16)


def test_cores_or_memory_limit_trials_without_gpus() -> None:
    packing = on_cpus({1: 100.0, 2: 190.0}, 1e9, 8, 64e9, 1)
    assert (packing.cpus_per_trial, packing.gpus_per_trial, packing.limit) == (1, 0, "cores")
    assert packing.rate == pytest.approx(0.95)
    packing = on_cpus({1: 100.0, 2: 190.0}, 20e9, 8, 64e9, 1)
    assert packing.cpus_per_trial == 4 and packing.limit == "the node's memory"
    with pytest.raises(ValueError, match=r"takes 4 cores and 1\.0 GB, the node has 2 and 64\.0 GB"):
        on_cpus({1: 100.0}, 1e9, 2, 64e9, 4)


def test_trials_an_hour_of_nodes() -> None:
    nodes = [Node("a", "a", 16, 2), Node("b", "b", 4, 1)]
    packing = on_gpu(GAIN, 2e9, 40e9, 8)  # four a GPU, two cores each
    assert [node.holds(packing.cpus_per_trial, packing.gpus_per_trial) for node in nodes] == [8, 2]
    assert trials_an_hour(nodes, packing, 60.0) == pytest.approx(10 * 60 * 0.6)
    assert trials_an_hour(nodes, packing, 60.0, workers=3) == pytest.approx(3 * 60 * 0.6)
