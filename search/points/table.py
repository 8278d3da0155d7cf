"""All operating points of a study's state as one table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from search.points import files as points
from search.points.rows import Repeats, curve_values, point_values, study_values, trial_values
from search.state.state import StudyState


def state_table(state: StudyState) -> pa.Table:
    """All operating points of a state in the schema of `search.points.files`, trial by trial.

    Where the study has constraints, only those that meet them.
    """
    same = {"schema_version": points.VERSION, **study_values(state.created)}
    columns: dict[str, list[Any]] = {name: [] for name in points.SCHEMA.names if name not in same}
    repeats, count = Repeats(state), 0
    for trial in state.trials.values():
        own = {**trial_values(trial), "repeat": repeats.of(trial)}
        for epoch in trial.curves:
            # what misses a constraint was told to the state as no point
            places = np.flatnonzero(np.isfinite(trial.arrays(epoch)[0])).tolist()
            for name, value in (own | curve_values(trial, epoch)).items():
                columns[name] += [value] * len(places)
            for index in places:
                for name, value in point_values(trial, epoch, index).items():
                    columns[name].append(value)
            count += len(places)
    arrays = {name: pa.array(values, points.SCHEMA.field(name).type) for name, values in columns.items()}
    arrays |= {name: pa.repeat(pa.scalar(value, points.SCHEMA.field(name).type), count) for name, value in same.items()}
    return pa.table([arrays[name] for name in points.SCHEMA.names], schema=points.SCHEMA)
