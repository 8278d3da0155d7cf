"""All operating points of a study's state as one table."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from search.points import files as points
from search.points.rows import config_id
from search.state.state import StudyState


def state_table(state: StudyState) -> pa.Table:
    """All operating points of a state in the schema of `search.points.files`, trial by trial.

    Where the study has constraints, only those that meet them.
    """
    created = state.created
    data, study = created["data"], created["spec"]["name"]
    same = {
        "schema_version": points.VERSION, "study": study, "image_size": data["task"]["size"], "dataset": data["name"],
        "data_hash": data["hash"], "split": "validation", "code_version": created["code_version"],
    }  # fmt: skip
    columns: dict[str, list[Any]] = {name: [] for name in points.SCHEMA.names if name not in same}
    repeats: Counter[str] = Counter()
    for trial in state.trials.values():
        identity = config_id(trial.identity)
        own = {
            "trial": trial.id, "config_id": identity, "repeat": repeats[identity], "method": trial.method,
            "variant": str(trial.config.get("variant", "")), "network": str(trial.config.get("network", "")),
            "cost_epochs": trial.cost_epochs, "macs_full": trial.macs_full, "params": trial.params,
            "seconds": trial.seconds, "seed": trial.seed, "config": json.dumps(trial.config, sort_keys=True),
            "correct_bits": None,
        }  # fmt: skip
        repeats[identity] += 1
        for epoch, curve in trial.curves.items():
            own |= {"phase": trial.phases.get(epoch, ""), "epoch": epoch}
            own["checkpoint"] = trial.checkpoints.get(epoch, "")
            # what misses a constraint was told to the state as no point
            counts = np.isfinite(trial.arrays(epoch)[0]).tolist()
            places = [index for index, here in enumerate(counts) if here]
            curve = [curve[index] for index in places]
            for name, value in own.items():
                columns[name] += [value] * len(curve)
            columns["point_id"] += [f"{trial.id}-{epoch}-{index}" for index in places]
            for name in ("setting", "knobs"):
                columns[name] += [json.dumps(point[name], sort_keys=True) for point in curve]
            for name in ("accuracy", "correct", "count", "macs", "macs_std"):
                columns[name] += [point[name] for point in curve]
    count = len(columns["point_id"])
    arrays = {name: pa.array(values, points.SCHEMA.field(name).type) for name, values in columns.items()}
    arrays |= {name: pa.repeat(pa.scalar(value, points.SCHEMA.field(name).type), count) for name, value in same.items()}
    return pa.table([arrays[name] for name in points.SCHEMA.names], schema=points.SCHEMA)
