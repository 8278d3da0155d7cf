"""The report of a study: what is read for it, and the files that it is written to."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.frontier.answer import answer
from search.frontier.pool import StudyPoints
from search.frontier.query import Query
from search.report.importance import Importances, importances, results
from search.status.cluster import cluster_record
from search.studies.follow import Followed, Span, followed, lanes
from search.units import dataset_name, machines_text

if TYPE_CHECKING:
    from search.report.paths.data import Paths
    from search.report.record import Report
    from search.state.state import StudyState
    from search.studies.stored import StoredStudy


def read_report(study: StoredStudy, *, paths: bool = True) -> Report:
    """Everything that a page shows of a study; `InputError` where its journal or its points are damaged."""
    from search.report.paths.data import Paths, paths_of

    known = followed(study)
    # files of a study that ended are read, so that a damaged one is noticed
    source = StudyPoints(study) if known.state.ended else StudyPoints(study, known.state)
    state = known.state
    found = results(state)
    return report_of(study, known, source, found, importances(found), paths_of(study, state) if paths else Paths())


def report_of(
    study: StoredStudy,
    known: Followed,
    source: StudyPoints,
    found: Sequence[tuple[Mapping[str, Any], float]],
    mattered: Sequence[Importances],
    paths: Paths,
) -> Report:
    """The record that a page is drawn from."""
    from search.report.record import Report

    state = known.state
    front = answer([source], Query(), sure=True)
    history = [
        {"seconds": h.seconds, "epochs": h.epochs, "trials": h.trials, "hypervolume": h.hypervolume}
        for h in state.history
    ]
    return Report(
        study=_facts(study, state),
        points=source.read(),
        front=[point.record() for point in front.points],
        history=history,
        trials=_trials(state, known.spans),
        results=found,
        importances=mattered,
        paths=paths,
        published=front.published,
        kept=_kept(study, state),
        command_more=_more(study),
        cluster=cluster_record(study.spec, state, time.time()),
        axes=front.axes,
        cascades=state.cascades[-1] if state.cascades else None,
    )


def _facts(study: StoredStudy, state: StudyState) -> dict[str, Any]:
    return {
        "name": study.spec.name,
        "state": study.status(),
        "dataset": dataset_name(state.created["data"]["name"]),
        "trials": state.count(),
        "epochs": state.cost_epochs,
        "seconds": state.elapsed_at(),
        "hypervolume": state.hypervolume,
        **({"latency": machines_text(state.machines)} if state.machines else {}),
        "reference": state.created["reference"],
        "seed": study.spec.seed,
        "code": state.created["code_version"],
    }


def _more(study: StoredStudy) -> str:
    """The option without which a command here would not find the study."""
    from search.studies.roots import shown, studies_root

    root = study.folder.path.parent
    return "" if root == studies_root() else f" --studies {shlex.quote(shown(root))}"


def _kept(study: StoredStudy, state: StudyState) -> dict[str, list[int]]:
    """By trial the epochs whose checkpoints are in the study's folder."""
    found: dict[str, list[int]] = {}
    for name in study.folder.kept():
        trial, _, epoch = name.partition("/epoch-")  # those in the middle of an epoch are passing
        if trial in state.trials and epoch.isdigit():
            found.setdefault(trial, []).append(int(epoch))
    return found


def _trials(state: StudyState, spans: dict[str, Span]) -> list[dict[str, Any]]:
    rows, lane = [], lanes(spans)
    for trial in state.trials.values():
        shown = [p for curve in trial.curves.values() for p in curve]
        span = spans.get(trial.id)
        rows.append(
            {
                "trial": trial.id,
                "method": trial.method,
                "network": str(trial.config.get("network", "")),
                "state": "waiting" if trial.state == "asked" else trial.state,
                "epoch": trial.epoch,
                "best_accuracy": max((p["accuracy"] for p in shown), default=None),
                "min_macs": min((p["macs"] for p in shown), default=None),
                "reason": trial.reason,
                "config": trial.config,
                "begin": span and span.begin,
                "end": span and span.end,
                "lane": lane.get(trial.id),
            }
        )
    return rows


def write_report(study: StoredStudy, folder: Path) -> dict[str, str]:
    """report.html, frontier.png and the pictures of paths in a folder; returns their paths by what they are."""
    from search.report.page import frontier_png, report_html
    from search.report.pictures import draw_cascades, draw_paths

    beside = folder.resolve() == study.folder.path
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written" + ("; write the report elsewhere: --out FOLDER" * beside))
    report = read_report(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frontier_png(report, folder / "frontier.png")
        pictures = draw_paths(report.points, report.paths, folder) if report.axes.usual else []
        if report.cascades:
            pictures.append(draw_cascades(report.cascades, folder))
        report_html(report, folder / "report.html")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    files = {"html": str(folder / "report.html"), "png": str(folder / "frontier.png")}
    return files | {path.stem: str(path) for path in pictures}
