"""The record that a report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from search.frontier.published import Published
from search.report.importance import Importances
from search.report.paths.data import Paths
from search.units import AxesText


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report is drawn from.

    `study`: name, state, dataset, trials (counts by state), epochs, seconds, hypervolume, reference
    ({error, macs} or a pair), seed; anything else that is there is shown as it is. `points`: all
    operating points (`search.points.files.SCHEMA`). `front`: the rows of the front, as mappings with the
    columns of `points` (knobs, setting and config as mappings or JSON) and, where they are known,
    membership, evidence and seeds. `history`: {seconds, epochs, trials, hypervolume} in the order of
    time. `trials`: {trial, method, network, state, epoch, best_accuracy, min_macs, reason}, where known
    config, begin, end (seconds of work) and lane; accuracy and MACs may be None. `results`: (configuration,
    hypervolume) of every trial; `importances` and `paths`: what `search.report.importance` and
    `search.report.paths.data` found. `published`: printed points of the data set. `kept`: by trial the epochs whose
    checkpoints are there. `command_more`: what a command that promotes from this study needs behind its name.
    `cluster`: what `search.status.cluster.cluster_record` tells. `axes`: what accuracies and MACs stand for.
    `cascades`: the last composition (`search.cascades.compose`).
    """

    study: Mapping[str, Any]
    points: pa.Table
    front: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)
    trials: Sequence[Mapping[str, Any]] = field(default_factory=list)
    results: Sequence[tuple[Mapping[str, Any], float]] = ()
    importances: Sequence[Importances] = ()
    paths: Paths = field(default_factory=Paths)
    published: Sequence[Published] = ()
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    command_more: str = ""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    axes: AxesText = field(default_factory=AxesText)
    cascades: Mapping[str, Any] | None = None
