"""Images a second of a served family of champions, against the dense network in the same run.

    python tests/benchmarks/inference/bench_serving.py [--quick] [--repeats N] [--json FILE]

Trains a static ResNet and a SkipNet of the same body on the digits, promotes a family by
`promote_family` (an alias a budget, SQLite registry in a temporary folder) and the static one as
`dense`, loads every alias through the registry and calls its pyfunc as a server does: uint8 images
in, a table out. Beside the aliases: one model asked for the same budgets by ``max_macs``, and the
dense network without MLflow around it (the prepared network alone). One thread, batches of 128,
contenders interleaved, medians; "of ideal" is the gain in time divided by the gain in MACs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.promotion.models import load, predict
from search.promotion.promotion import promote_family, promote_study
from search.studies.stored import load_data
from search.study import Study
from search.tracking.server import default_uri
from tests.support.promoting import point_of, spec, train
from trainables.data.augment import normalise

BATCH = 128


def distinct_budgets(study: Study, count: int) -> list[float]:
    """Budgets of MACs spread over the SkipNet's settings, the cheapest first."""
    trial = next(trial for trial in study.state().trials.values() if trial.method == "skipnet")
    macs = sorted({point["macs"] for point in trial.curves[trial.epoch]})
    return sorted({macs[round(i * (len(macs) - 1) / max(count - 1, 1))] for i in range(count)})


def interleaved(contenders: dict[str, Callable[[], Any]], images: int, repeats: int) -> dict[str, float]:
    """Images a second by contender: medians over rounds in which each runs once."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, call in contenders.items():
            begun = time.perf_counter()
            call()
            if round_:  # the first one warms up
                times[name].append(time.perf_counter() - begun)
    return {name: images / statistics.median(taken) for name, taken in times.items()}


def run(quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Rows: who, MACs an image, images a second, times the dense network, of ideal."""
    body = "resnet-20" if quick else "resnet-56"
    recipe = {"network": body, "width": 0.5 if quick else 1.0, "batch_size": 64, "lr": 0.1}
    changes = {
        "data": {"name": "digits", "image_size": 16 if quick else 32},
        "budget": {"trials": 2, "epochs": 3},
        "methods": {"static": recipe, "skipnet": {**recipe, "gate": "linear", "variant": "sp"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wish = spec("serving", **changes)
        data = load_data(wish)
        study = Study.create(wish, root=root, data=data)
        train(study, data)
        uri, words = default_uri(root), {"model": "digits", "uri": default_uri(root), "data": data}
        promote_study(study, alias="dense", point=point_of(study, "static"), **words)
        family = promote_family(study, budgets=distinct_budgets(study, 4), method="skipnet", **words)
        images = np.concatenate([data.test.decoded()] * 3)[: 2 * BATCH if quick else 4 * BATCH]
        models = {name: load(f"digits@{name}", uri) for name in ["dense", *(r["alias"] for r in family)]}
        network = models["dense"].model.unwrap_python_model().network
        pixels = normalise(torch.from_numpy(images.copy()), data.for_config(network.config))

        def bare() -> None:
            with torch.inference_mode():
                for batch in pixels.split(BATCH):
                    network.infer(batch, {})

        def table(model: Any, **asked: float) -> Callable[[], Any]:
            return lambda: [model.model.predict(images[i : i + BATCH], params=asked or None) for i in starts]

        starts = range(0, len(images), BATCH)
        contenders: dict[str, Callable[[], Any]] = {"dense, without MLflow": bare}
        macs = {"dense, without MLflow": float(network.macs_full)}
        for name, model in models.items():
            contenders[name], macs[name] = table(model), _macs(model, images)
        one = models[family[-1]["alias"]]
        for record in family:
            budget = record["budget"]["max_macs"]
            name = f"{family[-1]['alias']}, max_macs {budget:.0f}"
            contenders[name], macs[name] = table(one, max_macs=budget), _macs(one, images, budget)
        speed = interleaved(contenders, len(images), repeats)
    dense = speed["dense"]
    return [
        {
            "who": name,
            "MACs": round(macs[name]),
            "images/s": round(speed[name], 1),
            "x dense": round(speed[name] / dense, 2),
            "of ideal": round(speed[name] / dense / (macs["dense"] / macs[name]), 2),
        }
        for name in contenders
    ]


def _macs(model: Any, images: np.ndarray, budget: float | None = None) -> float:
    return float(np.mean([row["macs"] for row in predict(model, images, max_macs=budget)]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="resnet-20 at 16 pixels instead of resnet-56 at 32")
    parser.add_argument("--repeats", type=int, default=0, help="rounds (default 7, quick 5)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(a.quick, a.repeats or (5 if a.quick else 7))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, one thread")
    width = max(len(row["who"]) for row in rows)
    print(f"{'':{width}} {'MACs':>12} {'images/s':>10} {'x dense':>8} {'of ideal':>9}")
    for row in rows:
        print(f"{row['who']:{width}} {row['MACs']:>12} {row['images/s']:>10} {row['x dense']:>8} {row['of ideal']:>9}")
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
