"""Paths that a person writes relative to a folder are found from every other one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from search.errors import InputError
from search.spec.study import StudySpec
from search.studies.stored import load_data
from search.study import Study
from trainables.data import datasets


def _spec(name: str, data: str, **more: object) -> StudySpec:
    methods = {"static": {"network": "resnet-8", "width": 0.25, **more}}
    return StudySpec.parse({"name": name, "data": {"name": data, "image_size": 8}, "methods": methods})


def test_a_study_of_a_relative_folder_goes_on_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = datasets.load("digits", root=tmp_path, image_size=8, limit=100)
    datasets.export(digits.train, tmp_path / "images", digits.classes)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    study = Study.create(_spec("one", "../images"), root=tmp_path / "studies")
    assert study.spec.data.name == str(tmp_path / "images")
    Study.create(_spec("one", "../images"), root=tmp_path / "studies")  # the same one
    monkeypatch.chdir("/")
    found = Study.load("one", root=tmp_path / "studies")
    assert load_data(found.spec).hash == study.state().created["data"]["hash"]
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match="no such file or folder"):
        load_data(found.spec)


def test_a_data_set_keeps_its_name_though_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Study.create(_spec("two", "digits"), root=tmp_path / "studies").spec.data.name == "digits"
