from __future__ import annotations

import json

import pytest

from spaces.recorded import recorded, space_from
from spaces.space import Choice, Fixed, LogRange, Range, Space, When
from spaces.written import narrowed
from trainables.registry import METHODS

EVERYTHING = Space(
    {
        "variant": Choice(("a", "b")),
        "deep": Choice((True, False), stage=2),
        "count": Range(1, 5, integer=True),
        "share": Range(0.1, 1 / 3, when=When("deep", (True,))),
        "weight": LogRange(1e-3, 4.0, or_zero=True, stage=3, when=When("variant", ("b", "a"))),
        "decay_at": Choice(((0.5, 0.75), (0.9,), ())),
        "size": Fixed(8),
        "pair": Fixed((1, 2.0), when=When("size", (8, 16))),
    }
)


@pytest.mark.parametrize("space", [EVERYTHING, Space({}), *(method.space for method in METHODS.values())])
def test_a_space_comes_back_from_json_as_it_was(space: Space) -> None:
    again = space_from(json.loads(json.dumps(recorded(space))))
    assert again == space and list(again) == list(space)
    assert repr(again) == repr(space)  # 1 is no 1.0 and no True


def test_what_a_study_file_made_of_a_space_comes_back_too() -> None:
    overrides = {"lr": {"low": 0.1, "high": 1, "log": True}, "network": "resnet-8", "batch_size": [2, 4], "width": 0.5}
    space = narrowed(METHODS["codinet"].space, overrides, {"width": 1.0})
    assert repr(space_from(json.loads(json.dumps(recorded(space))))) == repr(space)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "lr", "range": [0, 1], "tilted": True}, "'lr' was recorded with tilted by later code"),
        ({"name": "lr", "stage": 2}, "'lr' was recorded without a range, a choice or a fixed value"),
    ],
)
def test_what_this_code_does_not_know_is_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_from([entry])
