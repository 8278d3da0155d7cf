"""Every gated method by one recipe on real images: test accuracy with 95 % intervals, MACs, paths.

    python tests/benchmarks/check_gated.py DATA --out FOLDER [--epochs 15] [--seeds 0 1] [--jobs 2] [--only aig]

DATA is a data set's name or path. Every (row, seed) trains in a process of one thread and leaves
``FOLDER/row-seed.json``; what is there already is not trained again, so that a check can be
continued. Prints a Markdown table of all results: mean over the seeds, intervals over the pooled test images
(which treat the seeds' errors as independent: they are somewhat too narrow).
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

from search.units import wilson
from trainables.data import default_root, load, normalise, to_device
from trainables.evaluation import evaluate
from trainables.fit import Training
from trainables.registry import METHODS, get_method

BODY = {"network": "resnet-20", "batch_size": 128, "lr": 0.1, "lr_decay_at": (0.5, 0.75), "weight_decay": 1e-4}

# row: method, what differs from BODY, the setting that is tested
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "static resnet-8": ("static", {"network": "resnet-8"}),
    "static resnet-14": ("static", {"network": "resnet-14"}),
    "static resnet-20": ("static", {}),
    "codinet vanilla": ("codinet", {"variant": "vanilla", "views": 2}),
    "codinet con_only": ("codinet", {"variant": "con_only", "views": 2}),
    "codinet full": ("codinet", {"variant": "full", "views": 2}),
    "skipnet sp": ("skipnet", {"variant": "sp"}),
    "skipnet hrl_sp": ("skipnet", {"variant": "hrl_sp", "hrl_lr": 1e-3}),
    "aig t=0.4": ("aig", {"target": 0.4}),
    "aig t=0.6": ("aig", {"target": 0.6}),
    "aig t=0.8": ("aig", {"target": 0.8}),
    "blockdrop": ("blockdrop", {"finetune_lr": 1e-3}),
    "sdv": ("sdv", {}),
}


def train(row: str, seed: int, data_name: str, epochs: int, file: Path) -> None:
    """Train one row with one seed and write what the test split says of it."""
    torch.set_num_threads(1)
    name, changes = ROWS[row]
    method = get_method(name)
    data = load(data_name, root=default_root())
    config = method.configure({**BODY, **changes})
    started = time.perf_counter()
    training = Training(method, config, data, epochs=epochs, seed=seed)
    while not training.done:
        report = training.step()
        print(f"{row} seed {seed}: epoch {report['epoch']} {report['losses']} {report['seconds']:.1f} s", flush=True)
    images, labels = to_device(data.test, "cpu")
    settings = list(method.settings(config))
    middle = next((s for s in settings if s.get("threshold") == 0.5), settings[len(settings) // 2])
    tested = evaluate(training.network, normalise(images, data), labels, middle).points[0]
    record = {
        "row": row,
        "seed": seed,
        "epochs": epochs,
        "setting": middle,
        "seconds": time.perf_counter() - started,
        "macs_full": training.network.macs_full,
        **{k: tested[k] for k in ("correct", "count", "macs", "path_length", "distinct_paths")},
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one line a row."""
    lines = [
        "| row | seeds | test accuracy | 95 % | by seed | MACs | of full | K | paths | minutes |",
        "|--|--|--|--|--|--|--|--|--|--|",
    ]
    for row in ROWS:
        mine = [r for r in records if r["row"] == row]
        if not mine:
            continue
        correct, count = sum(r["correct"] for r in mine), sum(r["count"] for r in mine)
        low, high = wilson(correct, count)
        mean = {k: statistics.mean(r[k] for r in mine) for k in ("macs", "macs_full", "path_length", "seconds")}
        each = ", ".join(f"{100 * r['correct'] / r['count']:.1f}" for r in mine)
        paths = ", ".join(str(r["distinct_paths"]) for r in mine)
        lines.append(
            f"| {row} | {len(mine)} | {100 * correct / count:.1f} % | {100 * low:.1f} to {100 * high:.1f} | {each} "
            f"| {mean['macs'] / 1e6:.2f}M | {100 * mean['macs'] / mean['macs_full']:.0f} % "
            f"| {mean['path_length']:.1f} | {paths} | {mean['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="methods")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        jobs = {}
        for seed in arguments.seeds:
            for row, (method, _) in ROWS.items():
                file = arguments.out / f"{row.replace(' ', '_')}-{seed}.json"
                if method in METHODS and (not arguments.only or method in arguments.only) and not file.exists():
                    jobs[pool.submit(train, row, seed, arguments.data, arguments.epochs, file)] = row
        for job in as_completed(jobs):
            job.result()
    records = [json.loads(file.read_text()) for file in sorted(arguments.out.glob("*.json"))]
    print(table(records))


if __name__ == "__main__":
    main()
