"""Multi-path networks, their plain, wide and deep rivals and ensembles by one recipe on real images.

    python tests/benchmarks/check_multipath.py DATA --out FOLDER [--epochs 15] [--seeds 0 1] [--jobs 2] [--rows ...]

DATA is a data set's name or path. Every (row, seed) trains in a process of one thread and leaves
``FOLDER/row-seed.json``; what is there already is not trained again, so that a check can be
continued. Prints Markdown of all results: test accuracy as a mean over the seeds, with 95 % intervals over the
pooled test images (which treat the seeds' errors as independent: they are somewhat too narrow), parameters and MACs
of the paper's setting, in which all paths run; then the curves of the pruned networks, which are ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.units import show_count, wilson
from trainables.data import default_root, load, normalise, to_device
from trainables.evaluation import curve
from trainables.fit import Training
from trainables.registry import get_method

RECIPE = {"batch_size": 128, "lr": 0.1, "lr_decay_at": (0.4, 0.75), "weight_decay": 1e-4}

# row: method, what differs from RECIPE
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "BaseCNN": ("multipath", {"network": "basecnn"}),
    "WideCNN": ("multipath", {"network": "widecnn"}),
    "DeepCNN": ("multipath", {"network": "deepcnn"}),
    "BaseCNN ensemble of 3": ("ensemble", {"network": "basecnn", "members": 3}),
    "SEBaseCNN": ("multipath", {"network": "sebasecnn"}),
    "BaseCNN-3 unrouted": ("multipath", {"network": "basecnn-3-none"}),
    "Cr-Stitch2": ("multipath", {"network": "basecnn-2-stitch"}),
    **{f"BaseCNN-{x}-CP": ("multipath", {"network": f"basecnn-{x}-cp"}) for x in (2, 3, 4)},
    **{f"BaseCNN-{x}-CC": ("multipath", {"network": f"basecnn-{x}-cc"}) for x in (2, 3, 4)},
}


def train(row: str, seed: int, data_name: str, epochs: int, limit: int, changes: dict[str, Any], file: Path) -> None:
    """Train one row with one seed and write what the test split says of all its settings."""
    torch.set_num_threads(1)
    name, own = ROWS[row]
    method = get_method(name)
    data = load(data_name, root=default_root(), limit=limit or None)
    config = method.configure({**RECIPE, **own, **changes})
    started = time.perf_counter()
    training = Training(method, config, data, epochs=epochs, seed=seed)
    while not training.done:
        report = training.step()
        print(f"{row} seed {seed}: epoch {report['epoch']} {report['losses']} {report['seconds']:.1f} s", flush=True)
    images, labels = to_device(data.test, "cpu")
    tested = curve(method, training.network, normalise(images, data), labels).points
    record = {
        "row": row,
        "seed": seed,
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
        "params": sum(p.numel() for p in training.network.parameters()),
        "macs_full": training.network.macs_full,
        "points": [{k: point[k] for k in ("setting", "correct", "count", "macs")} for point in tested],
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)


def whole(record: dict[str, Any]) -> dict[str, Any]:
    """The point in which everything runs."""
    return max(record["points"], key=lambda point: (point["macs"], point["setting"].get("threshold") == 0))


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one line a row."""
    lines = [
        "| row | seeds | test accuracy | 95 % | by seed | parameters | MACs | minutes |",
        "|--|--|--|--|--|--|--|--|",
    ]
    for row in ROWS:
        mine = [r for r in records if r["row"] == row]
        if not mine:
            continue
        points = [whole(r) for r in mine]
        correct, count = sum(p["correct"] for p in points), sum(p["count"] for p in points)
        low, high = wilson(correct, count)
        each = ", ".join(f"{100 * p['correct'] / p['count']:.1f}" for p in points)
        minutes = statistics.mean(r["seconds"] for r in mine) / 60
        lines.append(
            f"| {row} | {len(mine)} | {100 * correct / count:.1f} % | {100 * low:.1f} to {100 * high:.1f} | {each} "
            f"| {show_count(mine[0]['params'])} | {show_count(mine[0]['macs_full'])} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def curves(records: list[dict[str, Any]]) -> str:
    """Markdown: accuracy (and MACs as a share of all) by setting, for rows with several."""
    lines = ["| row | setting | test accuracy | MACs of all |", "|--|--|--|--|"]
    for row in ROWS:
        mine = [r for r in records if r["row"] == row and len(r["points"]) > 1]
        for points in zip(*(r["points"] for r in mine), strict=True):
            right = statistics.mean(p["correct"] / p["count"] for p in points)
            macs = statistics.mean(p["macs"] / r["macs_full"] for p, r in zip(points, mine, strict=True))
            lines.append(f"| {row} | {json.dumps(points[0]['setting'])} | {100 * right:.1f} % | {100 * macs:.0f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=[], choices=list(ROWS), metavar="ROW", help="only these")
    parser.add_argument("--limit", type=int, default=0, help="at most so many training images")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe, as JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments.out.mkdir(parents=True, exist_ok=True)
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        jobs = []
        for seed in arguments.seeds:
            for row in arguments.rows or ROWS:
                file = arguments.out / f"{row.replace(' ', '_')}-{seed}.json"
                if not file.exists():
                    settings = (row, seed, arguments.data, arguments.epochs, arguments.limit, changes, file)
                    jobs.append(pool.submit(train, *settings))
        for job in as_completed(jobs):
            job.result()
    records = [json.loads(file.read_text()) for file in sorted(arguments.out.glob("*.json"))]
    print(table(records))
    print("\nPruned, mean over the seeds:\n")
    print(curves(records))


if __name__ == "__main__":
    main()
