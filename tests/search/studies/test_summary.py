"""What `list` shows of studies at rest without their journals: the same, and never what no longer holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.engine.driver import driving
from search.studies.stored import StoredStudy
from search.studies.summary import NAME, kept, kept_under, record_of
from tests.support.command import Run
from tests.support.kept_study import keep as told
from tests.support.story import Story


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    story = Story()
    trial = story.ask(0, "static")
    story.report(trial, 1, [(0.6, 1e6), (0.7, 2e6)])
    story.decide(trial, 1, "finish")
    story.add("ended", {"why": "finished"})
    found = told(story, tmp_path / "studies", "rests")
    with driving(found):
        pass
    return found


def test_the_kept_record_is_the_one_that_the_journal_tells(study: StoredStudy) -> None:
    assert kept(study.folder.path) == json.loads(json.dumps(record_of(study, study.state())))


def _by_the_journal(study: StoredStudy) -> None:
    with driving(study) as driver:
        driver.record("session", {"host": "here", "pid": 1, "workers": 1})
        shutil.copy(study.folder.path / NAME, study.folder.path / "before")
        (study.folder.path / NAME).unlink()
    shutil.move(study.folder.path / "before", study.folder.path / NAME)


def _by_its_file(study: StoredStudy) -> None:
    with study.folder.spec.open("a") as file:
        file.write("# more\n")


def _by_a_writer(study: StoredStudy) -> None:
    study.folder.path.joinpath("control.db-wal").write_bytes(b"x" * 40)


def _by_damage(study: StoredStudy) -> None:
    study.folder.path.joinpath(NAME).write_text("[" * 5000)


def _by_other_types(study: StoredStudy) -> None:
    found = json.loads(study.folder.path.joinpath(NAME).read_text())
    found["record"]["epochs"] = "\x1b[2J"
    study.folder.path.joinpath(NAME).write_text(json.dumps(found))


def _by_a_pipe(study: StoredStudy) -> None:
    study.folder.path.joinpath(NAME).unlink()
    os.mkfifo(study.folder.path / NAME)


@pytest.mark.parametrize(
    "change", [_by_the_journal, _by_its_file, _by_a_writer, _by_damage, _by_other_types, _by_a_pipe]
)
def test_a_record_that_no_longer_holds_is_not_told(study: StoredStudy, change: Any) -> None:
    assert kept(study.folder.path) is not None
    change(study)
    assert kept(study.folder.path) is None
    assert kept_under(study.folder.path.parent) == ({}, False)


def test_listing_studies_at_rest_reads_no_journal_and_one_that_is_not_at_rest_stands_among_them(
    study: StoredStudy, cli: Run, tmp_path: Path
) -> None:
    root = tmp_path / "studies"
    code = (
        "import sys\nfrom search.__main__ import main\n"
        f"sys.argv = ['routefront', 'list', '--studies', {str(root)!r}]\n"
        "try:\n    main()\nfinally:\n    print(sorted({'sqlalchemy', 'moocore', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "rests" in done.stdout and done.stdout.endswith("[]\n"), done.stdout + done.stderr
    other = Story()
    other.ask(0, "static")
    told(other, root, "works")
    status, printed, _ = cli("list", "--studies", root, "--json")
    assert status == 0
    found = {record["study"]: record for record in json.loads(printed)}
    assert found["rests"] == kept(root / "rests") and found["works"]["state"] == "interrupted"
