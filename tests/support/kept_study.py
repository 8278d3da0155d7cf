"""A study told by hand, kept in a folder as a driver keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.journal.database import Journal, sqlite_address
from search.points import files as points
from search.points.rows import PointRows
from search.spec.toml import to_toml
from search.studies.folder import StudyFolder
from search.study import Study


def keep(story: Any, root: Path, name: str = "story", *, flushed: bool = False, **created: Any) -> Study:
    """The folder of a study with a story's events; `created` changes its first event, `flushed` writes Parquet."""
    spec = story.spec.model_copy(update={"name": name})
    folder = StudyFolder(root / name)
    for path in (folder.points, folder.checkpoints):
        path.mkdir(parents=True)
    folder.spec.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)))
    journal = Journal(sqlite_address(folder.control), name, create=True)
    journal.acquire()
    for event in story.events:
        payload = dict(event.payload)
        if event.kind == "created":
            payload = {**payload, "spec": spec.model_dump(mode="json"), **created}
        journal.append(event.kind, payload, event.trial)
    journal.close()
    study = Study(spec, folder)
    if flushed:
        state = study.state()
        made = PointRows(state)  # as a driver writes them
        curves = [(trial, epoch) for trial in state.trials.values() for epoch in trial.curves]
        points.write([row for trial, epoch in curves for row in made.of(trial, epoch)], folder.points)
    return study
