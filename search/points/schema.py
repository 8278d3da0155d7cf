"""The columns of operating points, one row a point: (trial, epoch, knobs) with its accuracy and MACs on a split."""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
VERSION_KEY = b"routefront.points"

SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("point_id", pa.string(), nullable=False),  # unique in a folder
        pa.field("study", pa.string()),
        pa.field("trial", pa.string()),
        pa.field("config_id", pa.string()),  # repeats of one configuration share it
        pa.field("repeat", pa.int32()),
        pa.field("method", pa.string()),
        pa.field("variant", pa.string()),
        pa.field("network", pa.string()),
        pa.field("image_size", pa.int32()),  # pixels along the shorter edge
        pa.field("dataset", pa.string()),
        pa.field("data_hash", pa.string()),
        pa.field("split", pa.string()),
        pa.field("phase", pa.string()),
        pa.field("epoch", pa.int32()),
        pa.field("cost_epochs", pa.float64()),  # epochs paid for until here, restarts included
        pa.field("setting", pa.string()),  # JSON: what the sweep asked for
        pa.field("knobs", pa.string()),  # JSON: the inference-time values found for it
        pa.field("accuracy", pa.float64(), nullable=False),  # share in [0, 1]
        pa.field("correct", pa.int64()),  # images
        pa.field("count", pa.int64()),  # images
        pa.field("macs", pa.float64(), nullable=False),  # mean per image
        pa.field("merit", pa.float64()),  # the figures of a study's own axes, for which accuracy and MACs stand there;
        pa.field("cost", pa.float64()),  # null where its axes are accuracy and MACs
        pa.field("counted_macs", pa.float64()),  # mean per image, and what measured the cost, where that is a latency;
        pa.field("machine", pa.string()),  # null elsewhere
        pa.field("macs_std", pa.float64()),  # over images
        pa.field("macs_full", pa.int64()),  # every unit executed
        pa.field("params", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("checkpoint", pa.string()),
        pa.field("config", pa.string()),  # JSON
        pa.field("code_version", pa.string()),
    ],
    metadata={VERSION_KEY: str(VERSION).encode()},
)

FEW_VALUES = (
    "study", "method", "variant", "network", "dataset", "data_hash", "split", "phase", "setting", "knobs", "checkpoint",
    "config", "config_id", "trial", "code_version", "machine",
)  # fmt: skip
"""Texts that many rows share: where few rows are wanted of many, they are decoded once a value."""
