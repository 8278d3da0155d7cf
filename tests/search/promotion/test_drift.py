"""A served model counts what it answers; windows are compared with the validation split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.errors import InputError
from search.promotion.drift import drift, homogeneity, judge
from search.promotion.models import load
from search.promotion.promotion import promote_study
from search.study import Study
from tests.support.promoting import point_of
from trainables.data.splits import Data
from trainables.export.routefront_runner import Watch, added, figures_of

EXITS, UNITS = ["exit-1", "exit-2"], ["stage-1", "stage-2"]


def answers(draw: np.random.Generator, count: int, deep: float) -> dict[str, np.ndarray]:
    """Answers of a network with two exits, of which a share goes on to the second."""
    goes = draw.random(count) < deep
    sure = np.where(goes, 0.5 + 0.4 * draw.random(count), 0.8 + 0.2 * draw.random(count))
    return {
        "macs": np.where(goes, 300.0, 100.0),
        "path": np.stack([np.ones(count), goes], axis=1).astype(float),
        "probabilities": np.stack([sure, 1 - sure], axis=1),
        "exit": goes.astype(int),
    }


def test_windows_alarm_without_cause_once_in_a_thousand_at_most() -> None:
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(10):  # the reference is a sample as well
        reference = figures_of(answers(draw, 2000, 0.3), 2)
        for _ in range(60):
            window = {**figures_of(answers(draw, 500, 0.3), 2), "begun": 0.0, "ended": 1.0}
            alarms += judge(window, reference, UNITS, EXITS, 0.01)["alarm"]
    assert alarms <= 12  # of 600 at one in a hundred: above that with probability 0.01 even were the tests exact


def test_more_images_that_go_deep_alarm_and_small_windows_need_more_of_them() -> None:
    draw = np.random.default_rng(1)
    reference = figures_of(answers(draw, 2000, 0.3), 2)

    def alarms(count: int, deep: float) -> bool:
        window = {**figures_of(answers(draw, count, deep), 2), "begun": 0.0, "ended": 1.0}
        return judge(window, reference, UNITS, EXITS, 0.001)["alarm"]

    assert alarms(500, 0.5) and alarms(5000, 0.36) and not alarms(100, 0.36)


def test_chi_squared_is_the_textbook_s() -> None:
    assert homogeneity([10, 20, 30], [10, 20, 30]) == pytest.approx(1)
    assert homogeneity([30, 70], [50, 50]) == pytest.approx(0.0038925, rel=1e-3)  # chi-squared 8.333, one degree
    assert homogeneity([1, 99], [0, 100]) == 1  # too few to say
    assert homogeneity([0, 0], [5, 5]) == 1


def test_windows_hold_sums_and_no_image(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    watch = Watch(2, folder=tmp_path / "log", window=100)
    given = [answers(draw, 40, 0.3) for _ in range(6)]
    for each in given:
        watch.add(each, 0.5)
    watch.add(given[0], 0.5, promoted=False)
    watch.close()
    (file,) = (tmp_path / "log").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["images"] for line in lines] == [120, 120]
    whole = added(lines[0], lines[1])
    assert whole["macs"] == sum(each["macs"].sum() for each in given)
    assert whole["exits"] == np.bincount(np.concatenate([each["exit"] for each in given]), minlength=2).tolist()
    assert sum(whole["confidence"]) == 240 and sum(whole["paths"].values()) == 240
    assert watch.total is not None and watch.total["images"] == 280 and watch.requests == 7


def test_a_served_model_is_watched(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote_study(tiny, point=point_of(tiny, "imta", 6), model="digits", uri=registry, data=digits_small)
    log = tmp_path / "log"
    monkeypatch.setenv("ROUTEFRONT_LOG", str(log))
    monkeypatch.setenv("ROUTEFRONT_LOG_WINDOW", "60")
    served = load("digits@champion", registry)
    images = digits_small.validation.images
    reference = served.serving["reference"]
    assert reference["images"] == len(images)

    served.model.predict(images[:60])
    record = drift("digits@champion", log, uri=registry)
    assert record["alarm"] is False and record["windows"][-1]["images"] == 60
    noise = np.random.default_rng(0).integers(0, 256, images[:60].shape, dtype=np.uint8)
    served.model.predict(noise, params={"max_macs": 1e12})  # another setting: not compared
    assert drift("digits@champion", log, uri=registry)["alarm"] is False
    served.model.predict(noise)
    record = drift("digits@champion", log, uri=registry)
    assert record["alarm"] is True
    assert record["since"] == record["windows"][-1]["begun"] and record["alarms"] == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such folder"),
        ("", "no window was written there yet"),
        ("{}\n", r"a\.jsonl line 1 is no window of counts"),
        ("nonsense\n", r"a\.jsonl line 1 is no window of counts"),
    ],
)
def test_bad_logs_are_one_line(tmp_path: Path, uri: str, content: Any, says: str) -> None:
    if content is not None:
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=says):
        drift("digits@champion", tmp_path / "log", uri=uri)
