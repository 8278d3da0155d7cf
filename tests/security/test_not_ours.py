"""What is not a study's stays: folders that merely hold a study file, links, names that lead elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search.commands.terminal import err  # noqa: F401  (consoles exist before output is captured)
from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.journal.events import Event
from search.spec.study import StudySpec
from search.spec.toml import to_toml
from search.state.state import StudyState
from search.study import Study
from tests.support.command import Run
from tests.support.kept_study import keep


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _told(story: type) -> Any:
    told = story()
    told.report(told.ask(0), 9, [(0.9, 1e6)])
    return told


def _with_journal_elsewhere(root: Path, story: type) -> Study:
    """A study of which the journal lies in a database of its own."""
    study = keep(story(), root / "studies", "digits")
    address = sqlite_address(root / "group.db")
    journal = Journal(address, "digits", create=True)
    journal.acquire()
    for event in study.journal().events():
        journal.append(event.kind, event.payload, event.trial)
    journal.close()
    spec = study.spec.model_copy(update={"journal": address})
    study.folder.control.unlink()
    study.folder.spec.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)))
    return Study.load(study.folder.path, trust=True)


def test_a_project_that_holds_a_study_file_is_not_deleted(cli: Run, story: type, tmp_path: Path) -> None:
    study = _with_journal_elsewhere(tmp_path, story)
    for name in ("project", "elsewhere/digits"):
        project = tmp_path / name
        (project / "src").mkdir(parents=True)
        (project / "src" / "main.py").write_text("print()")
        shutil.copy(study.folder.spec, project / "study.toml")
        before = _files(project)
        code, out, said = cli("delete", project, "--yes")
        assert code == 2 and not out and said.count("\n") == 1
        assert f"{project} holds the study file of 'digits' but is not the folder that the study wrote" in said
        assert _files(project) == before and study.journal().last() > 0
    code, out, _ = cli("delete", study.folder.path, "--yes", "--json")
    assert code == 0 and json.loads(out)["left"] == [] and not study.folder.path.exists()


def test_what_a_study_did_not_write_stays_with_a_line(cli: Run, story: type, tmp_path: Path) -> None:
    study = keep(_told(story), tmp_path, "digits", flushed=True)
    for name in ("notes.md", "points/mine.csv", "checkpoints/paper/figure.pdf"):
        path = study.folder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (study.folder.path / "report.html").write_text("<html>")
    code, out, said = cli("delete", "digits", "--studies", tmp_path, "--yes")
    assert code == 0, said
    assert f"left in {study.folder.path}, for no study writes it: notes.md, points/mine.csv, checkpoints/paper" in out
    assert {name for name in _files(study.folder.path) if "." in name} == {
        "notes.md", "points/mine.csv", "checkpoints/paper/figure.pdf"
    }  # fmt: skip


def test_what_goes_is_listed_before_it_is_asked(cli: Run, story: type, tmp_path: Path) -> None:
    study = keep(_told(story), tmp_path, "digits", flushed=True)
    code, _, said = cli("delete", "digits", "--studies", tmp_path)  # nobody answers
    assert code != 0 and study.folder.spec.exists()
    assert "study.toml" in said and "control.db" in said and "points/ (1 entries)" in said


def test_a_folder_with_other_things_becomes_no_study(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "control.db").write_text("of another program")
    (tmp_path / "project" / "main.py").write_text("print()")
    spec = StudySpec.parse({"name": "project", "data": {"name": "digits", "image_size": 8, "limit": 64}})
    with pytest.raises(InputError, match=r"is no study and holds 'main\.py', which no study writes"):
        Study.create(spec, root=tmp_path)
    assert _files(tmp_path / "project") == {"control.db", "main.py"}


@pytest.mark.parametrize("link", ["checkpoints/stages", "checkpoints", "ray", "points"])
def test_nothing_behind_a_link_is_removed(cli: Run, story: type, tmp_path: Path, link: str) -> None:
    study, home = keep(story(), tmp_path / "studies", "sent"), tmp_path / "home"
    for name in ("a" * 64, "t0009/epoch-0001", "session-1", "stages/thesis"):
        (home / name).mkdir(parents=True)
        (home / name / "state.json").write_text("{}")
    place = study.folder.path / link
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(home)
    before = _files(home)
    at = ("--studies", tmp_path / "studies")
    assert cli("gc", "sent", *at)[0] == 0 and cli("gc", *at)[0] == 0
    with study.driving() as driver:
        driver.stages.tidy()
    assert _files(home) == before
    code, out, said = cli("delete", "sent", "--yes", *at)
    assert code == 0, said
    assert _files(home) == before and place.is_symlink() and link in out


@pytest.mark.parametrize(
    ("kind", "trial", "payload"),
    [
        ("report", "../../home", {}),
        ("report", "t0000", {"checkpoint": "../../../home/epoch-0001"}),
        ("report", "t0000", {"checkpoint": "/etc"}),
        ("report", "t0000", {"stage": "../../home"}),
        ("stage", "t0000", {"key": "..", "action": "dropped"}),
        ("ask", "t0001", {"stage": {"key": "../x", "trial": "t0000"}}),
        ("ask", "t0001", {"donor": {"trial": "t0000", "epoch": 1, "checkpoint": "../x"}}),
        ("donor", "t0000", {"checkpoint": "donors/../../x"}),
        ("created", None, {"donors": {"mine": {"checkpoint": "donors/../../x"}}}),
        ("report", "t0000", ["no", "table"]),
    ],
)
def test_names_that_lead_elsewhere_are_refused_when_a_journal_is_read(kind: str, trial: Any, payload: Any) -> None:
    with pytest.raises(InputError, match="the journal is damaged: ") as error:
        StudyState().apply(Event(1, 0.0, kind, trial, payload))
    assert "\n" not in str(error.value)
