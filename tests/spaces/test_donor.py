from __future__ import annotations

import random
from typing import Any

import pytest

from spaces import aig, blockdrop
from spaces.donor import DONOR_LR, STUDY, options_of, with_donor
from spaces.space import Choice, Fixed


def test_a_donor_brings_a_learning_rate_of_its_own() -> None:
    space = with_donor(aig.SPACE, ["", STUDY])
    assert next(iter(space)) == "donor" and set(space) == {*aig.SPACE, "donor", "donor_lr"}
    rng, seen = random.Random(0), set()
    for _ in range(40):
        drawn = space.sample(rng)
        assert ("lr" in drawn) is (drawn["donor"] == "") and ("donor_lr" in drawn) is (drawn["donor"] == STUDY)
        assert "lr" in drawn or DONOR_LR.contains(drawn["donor_lr"])
        space.check(drawn)
        seen.add(drawn["donor"])
    assert seen == {"", STUDY}


def test_where_every_trial_has_one_there_is_no_other_rate() -> None:
    space = with_donor(aig.SPACE, STUDY)
    assert space["donor"] == Fixed(STUDY) and "lr" not in space and "donor_lr" in space
    assert with_donor(aig.SPACE, ["a", "b"])["donor"] == Choice(("a", "b"))
    own = with_donor(blockdrop.SPACE, STUDY, rate=False)  # a policy and a finetuning with rates of their own
    assert "lr" not in own and "donor_lr" not in own and "policy_lr" in own


@pytest.mark.parametrize("written", ["", [""]])
def test_without_one_a_space_stays_what_it_is(written: Any) -> None:
    assert with_donor(aig.SPACE, written) is aig.SPACE


@pytest.mark.parametrize(
    ("written", "message"),
    [(3, "takes a word"), ([], "offers nothing"), ([STUDY, STUDY], "twice"), ({"low": 1, "high": 2}, "does not fit")],
)
def test_what_is_no_word_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(written)
