"""The frontier of a study as a terminal table, CSV, PNG and HTML page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from search import points as point_store
from search.errors import InputError
from search.front import FrontPoint, front_points
from search.frontier import knee
from search.rows import point_rows
from search.units import knobs_text, show_count, show_share

if TYPE_CHECKING:
    from search.report import Report
    from search.state import StudyState
    from search.study import Study


def front_table(points: list[FrontPoint], dataset: str) -> Table:
    """The front for a terminal."""
    title = f"frontier on {_dataset(dataset)}: validation accuracy, MACs per image"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for name, justify in (("accuracy", "right"), ("MACs", "right"), ("of full", "right"), ("method", "left"),
                          ("network", "left"), ("knobs", "left"), ("trial", "left"), ("epoch", "right")):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=name != "knobs")  # type: ignore[arg-type]
    for point in points:
        table.add_row(
            show_share(point.accuracy),
            show_count(point.macs),
            f"{100 * point.macs / point.macs_full:.0f} %" if point.macs_full else "-",
            " ".join(filter(None, (point.method, point.variant))),
            point.network,
            knobs_text(point.knobs),
            point.trial,
            str(point.epoch),
        )
    return table


def knee_of(points: list[FrontPoint]) -> FrontPoint:
    """The point of a front after which accuracy costs more than it did before."""
    index = knee(np.array([1 - p.accuracy for p in points]), np.array([p.macs for p in points]))
    assert index is not None, "a front with points has a knee"
    return points[index]


def write_csv(points: list[FrontPoint], path: Path) -> None:
    """The front as CSV, knobs and configuration as JSON."""
    rows = [{k: json.dumps(v) if isinstance(v, dict) else v for k, v in p.record().items()} for p in points]
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["point_id"])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _report(study: Study, *, with_paths: bool) -> Report:
    from search.paths import Paths, paths_of
    from search.report import Report

    state = study.state()
    counts = state.count()
    try:
        table = point_store.read(study.folder.points)
    except ValueError as error:
        raise InputError(str(error)) from None
    created = state.created
    facts = {
        "name": study.spec.name,
        "state": study.status(),
        "dataset": _dataset(created["data"]["name"]),
        "trials": counts,
        "epochs": state.cost_epochs,
        "seconds": state.elapsed,
        "hypervolume": state.hypervolume,
        "reference": created["reference"],
        "seed": study.spec.seed,
        "code": created["code_version"],
    }
    history = [
        {"seconds": h.seconds, "epochs": h.epochs, "trials": h.trials, "hypervolume": h.hypervolume}
        for h in state.history
    ]
    return Report(
        study=facts,
        points=table,
        front=_front_rows(study, state),
        history=history,
        trials=_trials(state),
        paths=paths_of(study, state) if with_paths else Paths(),
    )


def _dataset(name: str) -> str:
    """The name of a data set for people: of a path its last part, ``hybrid:/a/b`` becoming ``hybrid:b``."""
    kind, colon, where = name.rpartition(":")
    return f"{kind}{colon}{Path(where).name}"


def _front_rows(study: Study, state: StudyState) -> list[dict[str, Any]]:
    rows = []
    for point in front_points(state):
        trial = state.trials[point.trial]
        rows.append(point_rows(state, trial, point.epoch, study.spec)[point.index])
    return rows


def _trials(state: StudyState) -> list[dict[str, Any]]:
    rows = []
    for trial in state.trials.values():
        shown = [p for curve in trial.curves.values() for p in curve]
        rows.append(
            {
                "trial": trial.id,
                "method": trial.method,
                "network": str(trial.config.get("network", "")),
                "state": trial.state,
                "epoch": trial.epoch,
                "best_accuracy": max((p["accuracy"] for p in shown), default=None),
                "min_macs": min((p["macs"] for p in shown), default=None),
                "reason": trial.reason,
            }
        )
    return rows


def write_png(study: Study, path: Path) -> None:
    """The picture of the frontier."""
    from search.report import frontier_png

    try:
        frontier_png(_report(study, with_paths=False), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def write_report(study: Study, folder: Path) -> dict[str, str]:
    """report.html, frontier.png and the pictures of paths in a folder; returns their paths by what they are."""
    from search.path_pngs import draw_paths
    from search.report import frontier_png, report_html

    report = _report(study, with_paths=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frontier_png(report, folder / "frontier.png")
        pictures = draw_paths(report.points, report.paths, folder)
        report_html(report, folder / "report.html")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    files = {"html": str(folder / "report.html"), "png": str(folder / "frontier.png")}
    return files | {path.stem: str(path) for path in pictures}
