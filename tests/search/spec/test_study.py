from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.spec.study import StudySpec, corners
from search.spec.toml import PRESETS, merge, preset, presets, to_toml
from search.units import parse_count, parse_seconds, show_count, show_seconds


def _parse(**values: Any) -> StudySpec:
    return StudySpec.parse({"name": "s", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "may hold letters"),
        ({"budget": {"trials": 0}}, "budget.trials = 0: input should be greater"),
        ({"budget": {"trials": -3}}, "budget.trials = -3"),
        ({"budget": {"trials": "many"}}, "budget.trials = 'many'"),
        ({"budget": {"time": "soon"}}, "'soon' is not a time"),
        ({"budget": {"trails": 3}}, "unknown key 'budget.trails'; did you mean 'trials'"),
        ({"bugdet": {}}, "unknown key 'bugdet'; did you mean 'budget'"),
        ({"methods": {"skipnets": {}}}, "unknown method 'skipnets'; did you mean 'skipnet'"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"skipnet": {"gate": "rnnn"}}}, "methods.skipnet: .*'rnnn'.*rnn"),
        ({"methods": {"skipnet": {"networks": "resnet-8"}}}, "unknown parameter 'networks'; did you mean 'network'"),
        ({"methods": {"skipnet": {"network": "resnet-9"}}}, "resnet-9"),
        ({"methods": {"skipnet": {"lr": {"low": 0.3, "high": 0.1}}}}, "upside down"),
        ({"methods": {"skipnet": {"lr": "fast"}}}, "wrong type"),
        ({"sampler": {"name": "tpee"}}, "unknown sampler 'tpee'; did you mean 'tpe'"),
        ({"rungs": {"epochs": [3, 1]}}, "list rising epochs"),
        ({"rungs": {"epochs": [99]}}, "the last rung must come before"),
        ({"rungs": {"reduction": 1}}, "rungs.reduction = 1"),
        ({"resources": {"capture": "on"}}, "resources.capture = 'on': input should be 'auto' or 'off'"),
        (
            {"resources": {"gpus_per_trial": 1.5}},
            r"gpus_per_trial = 1.5: a trial uses one GPU at most; take 1 or a share",
        ),
    ],
)
def test_bad_specs_get_one_line_with_the_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _parse(**values)
    assert "\n" not in str(caught.value)


def test_a_rule_of_earlier_releases_is_read_and_not_kept() -> None:
    for value in (False, True):
        old = StudySpec.parse({**_parse().model_dump(), "rungs": {"adaptive": value, "reduction": 3}}, trusted=True)
        assert old.rungs.reduction == 3 and "adaptive" not in old.rungs.model_dump()
    assert _parse(rungs={"adaptive": False}) == _parse()  # a stored study file, searched anew
    with pytest.raises(InputError, match=r"unknown key 'rungs.adaptive'"):
        _parse(rungs={"adaptive": True})


def test_files_that_are_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study file at .*presets: cifar10, clutter, digits"):
        StudySpec.read(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    with pytest.raises(InputError, match="is not valid TOML"):
        StudySpec.read(bad)
    with pytest.raises(InputError, match="unknown preset 'digit'; did you mean 'digits'"):
        preset("digit")


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_survive_writing(name: str) -> None:
    spec = StudySpec.read(PRESETS / f"{name}.toml")
    dump = spec.model_dump(mode="json", exclude_none=True)
    assert StudySpec.parse(tomllib.loads(to_toml(dump))) == spec
    assert len(spec.methods) >= 4


def test_default_rungs_are_thirds_of_the_epochs() -> None:
    assert _parse(budget={"epochs": 27}).rung_epochs == [3, 9]
    assert _parse(budget={"epochs": 2}).rung_epochs == [1]
    assert _parse(budget={"epochs": 1}).rung_epochs == []


def test_the_fingerprint_ignores_how_long_and_where() -> None:
    a = _parse(budget={"trials": 3}, resources={"workers": 1})
    assert a.fingerprint() == _parse(budget={"trials": 5}, resources={"workers": 2}).fingerprint()
    assert a.fingerprint() != _parse(seed=1).fingerprint()


def test_merge_replaces_by_dotted_names_and_leaves_none() -> None:
    base = {"name": "a", "budget": {"trials": 3}}
    assert merge(base, {"budget.trials": 5, "name": None, "data.name": "x"}) == {
        "name": "a",
        "budget": {"trials": 5},
        "data": {"name": "x"},
    }
    assert base["budget"] == {"trials": 3}


def test_corners_take_both_ends_and_every_option() -> None:
    space = _parse(methods={"static": {}}).spaces()["static"]
    found = corners(space)
    assert {c["network"] for c in found} == set(space["network"].options)  # type: ignore[union-attr]


def test_numbers_as_people_write_them() -> None:
    assert parse_count("20M") == 20e6 and parse_count("1.5G") == 1.5e9 and parse_count(7) == 7
    assert parse_seconds("2h") == 7200 and parse_seconds("20m") == 1200 and parse_seconds("90") == 90
    assert show_count(2_350_000) == "2.35M" and show_count(12) == "12"
    assert show_seconds(59) == "59s" and show_seconds(125) == "2m 05s" and show_seconds(3725) == "1h 02m"
    for bad in ("", "M", "12X", "-3"):
        with pytest.raises(InputError):
            parse_count(bad)
