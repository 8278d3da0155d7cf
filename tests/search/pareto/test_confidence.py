"""Membership by bootstrap: against enumeration and closed forms, shared images, seeds, evidence kept in checkpoints."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from search.frontier.answer import ask
from search.pareto.confidence import MOST, membership, near_front
from search.pareto.front import non_dominated
from search.points import files as stored
from tests.support.kept_study import keep


def test_two_points_against_the_binomial() -> None:
    """The dearer of two is on the front where it is strictly better; the cheaper always."""
    share = membership([40, 42], [50, 50], [1.0, 2.0], draws=20_000)
    random = np.random.default_rng(7)
    better = (random.binomial(50, 0.84, 200_000) > random.binomial(50, 0.80, 200_000)).mean()
    assert share[0] == 1.0 and share[1] == pytest.approx(better, abs=0.012)


def test_every_resample_of_few_images() -> None:
    """All 4^4 resamples of four images, enumerated, against drawn ones."""
    bits = [np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool), np.array([0, 0, 1, 1], bool)]
    macs = np.array([1.0, 2.0, 2.0])
    counts = np.zeros(3)
    for picked in itertools.product(range(4), repeat=4):
        accuracy = [b[list(picked)].mean() for b in bits]
        for k in range(3):
            counts[k] += not any(
                accuracy[o] >= accuracy[k] and macs[o] <= macs[k] and (accuracy[o], macs[o]) != (accuracy[k], macs[k])
                for o in range(3)
            )
    share = membership([2, 3, 2], [4, 4, 4], macs, bits=bits, draws=40_000)
    assert share == pytest.approx(counts / 4**4, abs=0.01)


def test_networks_that_fail_on_the_same_images_are_told_apart() -> None:
    right = np.arange(1000) < 900
    more = right.copy()
    more[900:905] = True  # right wherever the other is, and on five images more
    together = membership([900, 905], [1000, 1000], [1.0, 2.0], bits=[right, more])
    apart = membership([900, 905], [1000, 1000], [1.0, 2.0])
    assert together[1] > 0.98 and apart[1] < 0.75


def test_a_lucky_seed_is_judged_by_its_siblings() -> None:
    alone = membership([900, 950], [1000] * 2, [1.0, 2.0])
    assert alone[1] > 0.99
    share = membership([900, 950, 700, 700], [1000] * 4, [1.0, 2.0, 2.0, 2.0], groups=[0, 1, 1, 1])
    assert share[1] == share[2] == share[3] < 0.1
    # three seeds, each drawn with equal chance: all three draws hit the good one in 1 of 27
    assert share[1] == pytest.approx(1 / 27, abs=0.02)


def test_ties_and_nothing() -> None:
    assert membership([5, 5], [5, 5], [1.0, 1.0]).tolist() == [1.0, 1.0]  # equals do not dominate each other
    assert membership([5, 5], [5, 5], [1.0, 2.0]).tolist() == [1.0, 0.0]
    assert membership([], [], []).tolist() == []
    assert membership([3], [4], [1.0]).tolist() == [1.0]


def test_it_is_seeded_and_the_quick_way_is_the_slow_one() -> None:
    random = np.random.default_rng(0)
    macs = random.integers(1, 40, 200) * 1e6
    accuracy = random.uniform(0.6, 0.9, 200)
    correct, count = np.round(accuracy * 400).astype(int), np.full(200, 400)
    one = membership(correct, count, macs, seed=3)
    assert (one == membership(correct, count, macs, seed=3)).all()
    slow = np.zeros(200)
    for _ in range(1000):
        error = 1 - random.binomial(count, correct / count) / count
        front = set(zip(*(values[non_dominated(error, macs)].tolist() for values in (error, macs)), strict=True))
        slow += [pair in front for pair in zip(error.tolist(), macs.tolist(), strict=True)]  # equals are both on it
    assert np.abs(one - slow / 1000).max() < 0.08 and abs(one.sum() - slow.sum() / 1000) < 0.6


def test_what_is_near_a_front() -> None:
    random = np.random.default_rng(1)
    macs, error = 10 ** random.uniform(6, 8, 20_000), random.uniform(0.05, 0.9, 20_000)
    front = np.flatnonzero(non_dominated(error, macs))
    near = near_front(error, macs, np.full(20_000, 1000), front)
    assert set(front.tolist()) <= set(near.tolist()) and len(front) < len(near) < 5_000
    few = near_front(error, macs, np.full(20_000, 4), front)  # of four images everything is near
    assert len(few) == MOST and set(front.tolist()) <= set(few.tolist())
    assert near_front([], [], [], []).tolist() == []
    odd = near_front([0.1, np.nan, 0.5], [1e6, 1e6, 0.0], [10, 10, 10], [0])
    assert odd.tolist() == [0]


def test_bits_come_from_checkpoints_and_seeds_from_repeats(story: type, tmp_path: Path) -> None:
    one: Any = story()
    lucky, plain, cheap = (one.ask(n, "static", network="resnet-8", lr=lr) for n, lr in enumerate((0.1, 0.1, 0.3)))
    one.report(lucky, 1, [(0.9, 2e6)])
    one.report(plain, 1, [(0.5, 2e6)])  # the same configuration under another seed, far from the front
    one.report(cheap, 1, [(0.8, 1e6)])
    study = keep(one, tmp_path, flushed=True)
    first, second = ask([study], sure=True).points
    assert (first.evidence, second.evidence) == ("counts", "counts") and (first.seeds, second.seeds) == (1, 2)
    assert second.membership == pytest.approx(0.25, abs=0.06)  # only where both draws hit the lucky seed
    folder = study.folder.checkpoints / cheap / "epoch-0001"
    folder.mkdir(parents=True)
    bits = np.packbits(np.arange(360)[None] < 288, axis=1)
    save_file({"correct_bits": bits}, folder / "training.safetensors")
    assert ask([study], sure=True).points[0].evidence == "images"
    save_file({"correct_bits": np.zeros_like(bits)}, folder / "training.safetensors")  # of another evaluation
    assert ask([study], sure=True).points[0].evidence == "counts"
    (folder / "training.safetensors").write_bytes(b"\x80\x04never unpickled")
    assert ask([study], sure=True).points[0].evidence == "counts"
    assert ask([study], sure=True, seed=5) == ask([study], sure=True, seed=5)


def _with_draws(story: type, seed: int, accuracy: float) -> Any:
    """One trial whose setting has two keys, not in alphabetical order, as those of AIG and CoDiNet with draws."""
    one: Any = story()
    one.report(one.ask(seed, "static"), 1, [(accuracy, 2e6)])
    one.events[-1].payload["curve"]["points"][0]["setting"] = {"threshold": 0.5, "draws": 4}
    return one


@pytest.mark.parametrize("earlier", [False, True])
def test_seeds_of_a_finished_and_of_a_running_study_are_siblings(story: type, tmp_path: Path, earlier: bool) -> None:
    one = _with_draws(story, 0, 0.9)
    one.add("ended", {"why": "finished"})
    finished = keep(one, tmp_path, "finished", flushed=True)  # is read from its files, the other from its journal
    if earlier:  # files of releases that wrote the keys of a setting as they came
        rows = [
            {**row, "setting": '{"threshold": 0.5, "draws": 4}'}
            for row in stored.read(finished.folder.points).to_pylist()
        ]
        for path in finished.folder.points.iterdir():
            path.unlink()
        stored.write(rows, finished.folder.points)
    running = keep(_with_draws(story, 1, 0.5), tmp_path, "running")
    (point,) = ask([finished, running], sure=True).points
    assert (point.study, point.seeds) == ("finished", 2)
