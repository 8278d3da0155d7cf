"""Whether a range of a space lies where its method learns: one hyperparameter over a grid, all else equal.

    python tests/benchmarks/training/bench_ranges.py --json FILE [--field lr] [--values 0.01 0.03 ...] [--rows ROW ...]
        [--epochs 6] [--seeds 0] [--data cluttered-digits] [--image-size 16] [--limit 3200]
    python tests/benchmarks/training/bench_ranges.py --json FILE --table

Trainings are short, of small networks, with a cosine and batches of 64. A finished one is a row of FILE and not trained
again. Prints for every method the best validation accuracy of its curve by value (the mean over seeds), the values that
come within two points of the best one, and the range that its space searches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from spaces.space import Range
from trainables.data.datasets import load
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.training.training import Training

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"network": "resnet-14", "width": 0.5}),
    "sdv": ("sdv", {"network": "resnet-14", "width": 0.5}),
    "aig": ("aig", {"network": "resnet-14", "width": 0.5}),
    "skipnet sp": ("skipnet", {"network": "resnet-14", "width": 0.5, "variant": "sp"}),
    "codinet": ("codinet", {"network": "resnet-14", "width": 0.5, "views": 2}),
    "act": ("act", {"network": "preact-resnet-14", "width": 0.5}),
    "sact": ("sact", {"network": "preact-resnet-14", "width": 0.5}),
    "imta ge": ("imta", {"network": "msdnet-3", "width": 0.25, "variant": "ge"}),
    "decide actor": ("decide", {"network": "pyramid", "width": 0.5, "variant": "actor"}),
    "multipath cc": ("multipath", {"network": "resnet-8-2", "width": 0.5, "variant": "cc"}),
    "ensemble": ("ensemble", {"network": "resnet-8", "width": 0.5, "members": 2}),
    "exits": ("exits", {"network": "resnet-14", "width": 0.5, "exits": 3}),
    "blocks": ("blocks", {"network": "resnet-14", "width": 0.5}),
}
VALUES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.6)
RECIPE = {"batch_size": 64, "schedule": "cosine"}
NEAR = 0.02
"""How far below the best accuracy a value still counts as one that a range should hold."""


def accuracy(name: str, data: Data, epochs: int, seed: int, changes: dict[str, Any]) -> float:
    """The best validation accuracy on the curve of one training; chance where it diverged."""
    method = get_method(ROWS[name][0])
    config = method.configure({**RECIPE, **ROWS[name][1], **changes})
    training = Training(method, config, data, epochs=epochs, seed=seed)
    try:
        while not training.done:
            training.step()
    except FloatingPointError as error:
        print(f"{name} {changes}: {error}", flush=True)
        return 1 / data.task.classes
    assert training.last_curve is not None
    return max(point["accuracy"] for point in training.last_curve.points)


def table(rows: list[dict[str, Any]], field: str) -> str:
    """Markdown: a line a method."""
    values = sorted({row["value"] for row in rows})
    lines = [f"| {field} | {' | '.join(f'{value:g}' for value in values)} | near the best | searched |"]
    lines.append("|--" * (len(values) + 3) + "|")
    for name in dict.fromkeys(row["row"] for row in rows):
        means = {}
        for value in values:
            found = [row["accuracy"] for row in rows if row["row"] == name and row["value"] == value]
            if found:
                means[value] = statistics.mean(found)
        near = [value for value, mean in means.items() if mean >= max(means.values()) - NEAR]
        parameter = get_method(ROWS[name][0]).space.parameters[field]
        searched = f"{parameter.low:g} to {parameter.high:g}" if isinstance(parameter, Range) else str(parameter)
        cells = [f"{100 * means[value]:.1f}" if value in means else "" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {min(near):g} to {max(near):g} | {searched} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--field", default="lr")
    parser.add_argument("--values", type=float, nargs="+", default=list(VALUES))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="cluttered-digits")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--limit", type=int, default=3200)
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    done = {(row["row"], row["field"], row["value"], row["seed"]) for row in rows}
    if not arguments.table:
        root = Path(tempfile.gettempdir()) / "routefront-ranges"
        data = load(arguments.data, root=root, image_size=arguments.image_size, limit=arguments.limit)
        for seed in arguments.seeds:
            for name in arguments.rows:
                for value in arguments.values:
                    if (name, arguments.field, value, seed) in done:
                        continue
                    found = accuracy(name, data, arguments.epochs, seed, {arguments.field: value})
                    print(f"{name}, {arguments.field} {value:g}, seed {seed}: {100 * found:.1f} %", flush=True)
                    row = {"row": name, "field": arguments.field, "value": value, "seed": seed, "accuracy": found}
                    rows.append(row | {"epochs": arguments.epochs})
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table([row for row in rows if row["field"] == arguments.field], arguments.field))


if __name__ == "__main__":
    main()
