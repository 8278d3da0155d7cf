"""Two models on the same labelled images, and the gate that promotion can demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.errors import InputError, RunError
from search.promotion.compare import compare, paired
from search.promotion.promotion import promote_study
from search.study import Study
from tests.support.promoting import point_of
from trainables.data.splits import Data


def answers(right: np.ndarray, macs: float) -> dict[str, np.ndarray]:
    return {"right": right, "macs": np.full(len(right), macs)}


def test_the_interval_is_agresti_s_and_min_s() -> None:
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:60], second[10:75] = True, True  # 10 lost, 15 won
    found = paired(answers(first, 200.0), answers(second, 150.0), 0.01)
    assert (found["only_first"], found["only_second"]) == (10, 15)
    gain = found["accuracy_difference"]
    assert gain["mean"] == pytest.approx(0.05)
    error = 1.959964 * np.sqrt(26 - 25 / 102) / 102
    assert (gain["low"], gain["high"]) == pytest.approx((5 / 102 - error, 5 / 102 + error))
    assert found["macs_difference"] == {"mean": -50, "low": -50, "high": -50}
    assert found["verdict"] == "undecided"


def test_verdicts() -> None:
    base = np.arange(2000) < 1600

    def verdict(lost: int, won: int) -> str:
        other = base.copy()
        other[:lost], other[1600 : 1600 + won] = False, True
        return str(paired(answers(base, 1.0), answers(other, 1.0), 0.01)["verdict"])

    assert verdict(0, 0) == "not worse"
    assert verdict(5, 60) == "better"
    assert verdict(60, 5) == "worse"
    assert verdict(40, 30) == "undecided"


def test_coverage_is_what_it_says() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        first = draw.random(200) < 0.8
        second = np.where(draw.random(200) < 0.1, draw.random(200) < 0.5, first)  # 0.8 to 0.77: -0.03
        gain = paired(answers(first, 1.0), answers(second, 1.0), 0.01)["accuracy_difference"]
        inside += gain["low"] <= -0.03 <= gain["high"]
    assert inside >= 0.92 * 400


def test_models_are_compared_and_promotion_demands_it(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path
) -> None:
    split = digits_small.test
    for k in range(60):
        folder = tmp_path / "labelled" / digits_small.classes[int(split.labels[k])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[k, 0]).save(folder / f"{k}.png")
    images = tmp_path / "labelled"
    good, bad = point_of(tiny, "imta", 6), point_of(tiny, "skipnet", -1)  # the last: nearly no block runs
    words = {"model": "digits", "uri": registry, "data": digits_small}
    record = promote_study(tiny, point=good, compare_on=images, **words)
    assert [g["passed"] for g in record["gates"] if g["name"] == "compare"] == [None]
    promote_study(tiny, point=bad, alias="challenger", **words)
    found = compare("digits@champion", "digits@challenger", images, uri=registry)
    assert found["images"] == 60
    assert found["accuracy_difference"]["mean"] == pytest.approx(found["accuracy"][1] - found["accuracy"][0])
    same = compare("digits@champion", "digits@champion", images, uri=registry, margin=0.1)
    assert same["verdict"] == "not worse" and same["macs_difference"]["mean"] == 0

    dry = promote_study(tiny, point=bad, compare_on=images, dry_run=True, max_macs=1e9, **words)
    (gate,) = [g for g in dry["gates"] if g["name"] == "compare"]
    assert gate["evidence"]["accuracy"][1] == pytest.approx(found["accuracy"][1])
    assert gate["passed"] is (found["verdict"] in ("better", "not worse"))
    with pytest.raises(RunError, match="gate"):
        promote_study(tiny, point=bad, compare_on=images, **words)
    with pytest.raises(InputError, match="--margin 2: a loss of accuracy"):
        compare("digits@champion", "digits@challenger", images, uri=registry, margin=2)
    (images / "zebra").mkdir()
    Image.fromarray(split.images[0, 0]).save(images / "zebra" / "0.png")
    with pytest.raises(InputError, match=r"folder .zebra. in .* is no class of the models"):
        compare("digits@champion", "digits@challenger", images, uri=registry)
