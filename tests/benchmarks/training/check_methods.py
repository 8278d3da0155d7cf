"""Families of methods by one recipe on real images: test accuracy with 95 % intervals, MACs, paths, exits.

    python tests/benchmarks/training/check_methods.py FAMILY DATA --out FOLDER [--epochs 15] [--seeds 0 1] [--jobs 2]
        [--rows ROW ...] [--set precision='"bfloat16"' ...] [--table]

FAMILY is a table of `FAMILIES`, DATA a data set's name or path. Every (row, seed) trains in a process of one
thread and leaves ``FOLDER/row-seed.json``; what is there already is not trained again, so that a check can
be continued; what was trained so far lies in ``tests/benchmarks/results/FAMILY``. Rows that begin behind
another (a second phase on the other's network, a routed network on a static donor's weights) find its checkpoint in
``FOLDER/checkpoints``. An epoch is written down there too, so that a training goes on where it was ended. Settings and
exit thresholds are those that the validation split gave; the test split is read once, at the end. ``--table`` trains
nothing. Prints Markdown: means over the seeds, with 95 % intervals over seeds and images: the variance of a mean is
that of the images' mean correctness, divided by their number, and that of the seeds, divided by theirs; the latter is
pooled over all rows of the table, since two or three seeds of a row say little about it.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.units import show_count
from trainables.contracts.network import RoutedNetwork
from trainables.data.augment import normalise, to_device
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.diagnostics.measure import usual_setting
from trainables.inference.evaluation import exit_logits
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.training.training import Training
from trainables.version import code_version

RECIPE = {"batch_size": 128, "lr": 0.1, "schedule": "cosine", "weight_decay": 1e-4}


@dataclass(frozen=True, slots=True)
class Row:
    """A method, what differs from the family's recipe, and how many settings of its curve are tested (0: the usual).

    `behind`: the row whose network it begins with, by the field `way` of its configuration; it takes `share` of the
    epochs. `seeds`: how many seeds it is trained with.
    """

    method: str
    changes: Mapping[str, Any]
    settings: int = 0
    behind: str = ""
    way: str = "phase1"
    share: float = 1.0
    seeds: int = 2


@dataclass(frozen=True, slots=True)
class Family:
    """Rows by name, and the recipe that they share."""

    recipe: Mapping[str, Any]
    rows: Mapping[str, Row]


FAMILIES: dict[str, Family] = {
    "gated": Family(
        {**RECIPE, "network": "resnet-20"},
        {
            "static resnet-8": Row("static", {"network": "resnet-8"}, seeds=3),
            "static resnet-14": Row("static", {"network": "resnet-14"}, seeds=3),
            "static resnet-20": Row("static", {}, seeds=3),
            "codinet vanilla": Row("codinet", {"variant": "vanilla", "views": 2}),
            "codinet con_only": Row("codinet", {"variant": "con_only", "views": 2}),
            "codinet full": Row("codinet", {"variant": "full", "views": 2}),
            "codinet full, init published": Row("codinet", {"variant": "full", "views": 2, "init": "published"}),
            "skipnet sp": Row("skipnet", {"variant": "sp"}),
            "skipnet hrl_sp": Row("skipnet", {"variant": "hrl_sp", "hrl_lr": 1e-3}),
            "aig t=0.4": Row("aig", {"target": 0.4}),
            "aig t=0.6": Row("aig", {"target": 0.6}),
            "aig t=0.8": Row("aig", {"target": 0.8}),
            "blockdrop": Row("blockdrop", {"finetune_lr": 1e-3}),
            "sdv": Row("sdv", {}),
        },
    ),
    "donors": Family(  # ten epochs on a donor's fifteen, beside static networks that train all twenty-five
        {**RECIPE, "network": "resnet-20"},
        {
            **{
                f"static resnet-{depth}": Row("static", {"network": f"resnet-{depth}"}, share=5 / 3)
                for depth in (8, 14, 20)
            },
            "donor": Row("static", {}),
            **{
                name: Row(method, changes, settings=4, behind="donor", way="donor", share=2 / 3)
                for name, method, changes in (
                    ("aig t=0.6", "aig", {"target": 0.6}),
                    ("aig t=0.8", "aig", {"target": 0.8}),
                    ("skipnet sp", "skipnet", {"variant": "sp"}),
                    ("skipnet hrl_s", "skipnet", {"variant": "hrl_s", "alpha": 1.0}),
                    ("codinet full", "codinet", {"variant": "full", "views": 2, "gamma": 0.02}),
                    ("blockdrop", "blockdrop", {"finetune_lr": 1e-3}),
                )
            },
        },
    ),
    "exits": Family(
        {**RECIPE, "batch_size": 64, "curve_points": 8},
        {
            f"msdnet-{k} {variant}": Row("imta", {"network": f"msdnet-{k}", "variant": variant}, settings=8)
            for k in (3, 5)
            for variant in ("none", "ge", "isc", "ofa", "all")
        }
        | {  # the paper's protocol: phase II takes 180 epochs more, behind phase I's 300
            f"msdnet-{k} {variant} behind {first}": Row(
                "imta",
                {"network": f"msdnet-{k}", "variant": variant},
                settings=8,
                behind=f"msdnet-{k} {first}",
                share=0.6,
            )
            for k in (3, 5)
            for variant, first in (("isc", "none"), ("ofa", "none"), ("all", "ge"))
        },
    ),
    "decide": Family(
        {"batch_size": 128, "network": "pyramid", "lr": 0.03, "warmup": 0.1},
        {
            **{f"static-{n}": Row("decide", {"network": f"pyramid-static-{n}"}) for n in (1, 2, 3, 4, 6, 8)},
            **{
                f"{variant}{'' if talr else ', no TALR'}": Row("decide", {"variant": variant, "talr": talr})
                for variant in ("actor", "pragmatic", "optimistic", "classification_error")
                for talr in (True, False)
            },
            **{
                f"{variant}, k_cpt {k_cpt:g}": Row("decide", {"variant": variant, "k_cpt": k_cpt})
                for variant in ("actor", "pragmatic")
                for k_cpt in (1.6e-8, 6.4e-8)
            },
            "actor, dynamic": Row("decide", {"variant": "actor", "dynamic_k_cpt": True}, settings=4),
            "pragmatic, dynamic": Row("decide", {"variant": "pragmatic", "dynamic_k_cpt": True}, settings=4),
            **{
                f"{variant}, dynamic, scale 3e8": Row(
                    "decide", {"variant": variant, "dynamic_k_cpt": True, "k_cpt_scale": 3e8}, settings=4
                )
                for variant in ("actor", "pragmatic")
            },
        },
    ),
    "halting": Family(
        {**RECIPE, "network": "preact-resnet-20"},
        {
            "vanilla": Row("act", {"variant": "vanilla"}, seeds=3),
            **{
                f"{name} tau={tau:g}": Row(name, {"tau": tau}) for name in ("act", "sact") for tau in (1e-3, 1e-2, 5e-2)
            },
            **{
                f"{name} tau=0.01, init published": Row(name, {"tau": 1e-2, "init": "published"})
                for name in ("act", "sact")
            },
        },
    ),
    "multipath": Family(
        RECIPE,
        {
            "BaseCNN": Row("multipath", {"network": "basecnn"}, seeds=3),
            "WideCNN": Row("multipath", {"network": "widecnn"}, seeds=3),
            "DeepCNN": Row("multipath", {"network": "deepcnn"}, seeds=3),
            "BaseCNN ensemble of 3": Row("ensemble", {"network": "basecnn", "members": 3}, settings=3),
            "SEBaseCNN": Row("multipath", {"network": "sebasecnn"}),
            "BaseCNN-3 unrouted": Row("multipath", {"network": "basecnn-3-none"}),
            "Cr-Stitch2": Row("multipath", {"network": "basecnn-2-stitch"}),
            **{
                f"BaseCNN-{x}-{kind.upper()}": Row("multipath", {"network": f"basecnn-{x}-{kind}"}, settings=9)
                for kind in ("cp", "cc")
                for x in (2, 3, 4)
            },
        },
    ),
}


def checkpoint(out: Path, row: str, seed: int) -> Path:
    """Where the network of a row lies that others begin behind."""
    return out / "checkpoints" / f"{row.replace(' ', '_')}-{seed}"


def begun_behind(family: str, row: str) -> bool:
    """Whether another row begins behind this one."""
    return any(other.behind == row for other in FAMILIES[family].rows.values())


def train(family: str, name: str, seed: int, data_name: str, epochs: int, changes: dict[str, Any], file: Path) -> None:
    """Train one row with one seed and write what the test split says of it."""
    torch.set_num_threads(1)
    row = FAMILIES[family].rows[name]
    method = get_method(row.method)
    data = load(data_name, root=default_root())
    begun = {row.way: str(checkpoint(file.parent, row.behind, seed))} if row.behind else {}
    config = method.configure({**FAMILIES[family].recipe, **row.changes, **changes, **begun})
    epochs = round(row.share * epochs)
    training = Training(method, config, data, epochs=epochs, seed=seed)
    kept = checkpoint(file.parent, name, seed)
    if kept.exists():
        training.restore(kept)
    while not training.done or training.last_curve is None:
        if training.done:  # all was trained, but the row was not written: its curve is not in the checkpoint
            training = Training(method, config, data, epochs=epochs, seed=seed)
        report = training.step()
        print(f"{name} seed {seed}: epoch {report['epoch']} {report['losses']} {report['seconds']:.1f} s", flush=True)
        if not training.done or begun_behind(family, name):
            training.save(kept)
    assert training.last_curve is not None
    points = training.last_curve.points
    if row.settings:
        points = [points[round(i * (len(points) - 1) / max(1, row.settings - 1))] for i in range(row.settings)]
    else:
        usual = usual_setting(method, config)
        points = [next(point for point in points if point["setting"] == usual)]
    images, labels = to_device(data.test, "cpu")
    images = normalise(images, training.data)
    assert isinstance(images, Tensor)
    network = training.network.eval()
    record = {
        "row": name,
        "seed": seed,
        "epochs": epochs,
        "behind": row.behind,
        "code": code_version(),
        "recipe": {**FAMILIES[family].recipe, **row.changes, **changes},
        "seconds": training.seconds,
        "params": sum(p.numel() for p in network.parameters()),
        "macs_full": network.macs_full,
        "points": [tested(network, images, labels, data, point) for point in points],
        "exits": exits(network, images, labels) if method.calibrate is not None else [],
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)
    if not begun_behind(family, name):
        shutil.rmtree(kept, ignore_errors=True)


def packed(right: Tensor) -> str:
    """Which images were answered rightly, (n,) bool, as text."""
    return base64.b64encode(np.packbits(right.cpu().numpy())).decode()


def unpacked(point: Mapping[str, Any]) -> np.ndarray:
    """What `packed` made text of, (n,) float."""
    return np.unpackbits(np.frombuffer(base64.b64decode(point["bits"]), np.uint8))[: point["count"]].astype(float)


@torch.inference_mode()
def tested(network: RoutedNetwork, images: Tensor, labels: Tensor, data: Data, point: dict[str, Any]) -> dict[str, Any]:
    """One operating point on the test split, by the hard pass; MACs and accuracy by class too."""
    fast, parts = prepared(network), []
    generator = torch.Generator().manual_seed(0)
    for batch in images.split(128):
        result = fast.infer(batch, point["knobs"], generator=generator)
        length = result.decisions.sum(dim=1) if result.length is None else result.length
        parts.append((result.logits.argmax(dim=1), result.macs, result.path, length.double()))
    predicted, macs, path, length = (torch.cat(each) for each in zip(*parts, strict=True))
    right = predicted.eq(labels)
    return {
        "setting": point["setting"],
        "knobs": point["knobs"],
        "correct": int(right.sum()),
        "count": len(labels),
        "bits": packed(right),
        "macs": float(macs.double().mean()),
        "path_length": float(length.mean()),
        "distinct_paths": len(torch.unique(path, dim=0)),
        "classes": {
            label: [float(macs[labels == i].double().mean()), float(right[labels == i].double().mean())]
            for i, label in enumerate(data.classes)
        },
    }


def exits(network: RoutedNetwork, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Every exit when all images leave there (anytime prediction)."""
    logits = exit_logits(prepared(network), images)
    return [
        {
            "correct": int((right := each.argmax(dim=1).eq(labels)).sum()),
            "count": len(labels),
            "bits": packed(right),
            "macs": exit.macs,
        }
        for each, exit in zip(logits, network.exits, strict=True)
    ]


def interval(points: Sequence[Mapping[str, Any]], seed_variance: float) -> tuple[float, float, float]:
    """Mean accuracy of one setting over its seeds, and its 95 % interval over seeds and images: see the module."""
    right = np.stack([unpacked(point) for point in points])
    images = right.mean(axis=0).var(ddof=1) / right.shape[1]
    half = 1.96 * (images + seed_variance / len(points)) ** 0.5
    mean = float(right.mean())
    return mean, mean - half, mean + half


def variance_of_seeds(groups: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """Variance of the accuracy from seed to seed, pooled over settings with at least two seeds; 0 where none has."""
    each = [[point["correct"] / point["count"] for point in points] for points in groups if len(points) > 1]
    spread = sum(statistics.variance(one) * (len(one) - 1) for one in each)
    return spread / max(1, sum(len(one) - 1 for one in each))


def settings_of(records: list[dict[str, Any]], row: str, what: str = "points") -> list[tuple[dict[str, Any], ...]]:
    """For every setting (or exit) of a row its points, one a seed."""
    return list(zip(*(record[what] for record in records if record["row"] == row), strict=True))


def _accuracy(points: Sequence[Mapping[str, Any]], seed_variance: float) -> str:
    """Cells: mean over the seeds, its interval, each seed."""
    mean, low, high = interval(points, seed_variance)
    each = ", ".join(f"{100 * p['correct'] / p['count']:.1f}" for p in points)
    return f"{100 * mean:.1f} % | {100 * low:.1f} to {100 * high:.1f} | {each}"


def table(rows: Sequence[str], records: list[dict[str, Any]], easy: Sequence[str]) -> str:
    """Markdown: a line for every setting of every row; MACs of `easy` classes and of the others where given."""
    split = " MACs, easy | MACs, others | accuracy, easy | others |" if easy else ""
    lines = [
        "| row | setting | seeds | test accuracy | 95 % | by seed | MACs | of full | K | paths | parameters | minutes |"
        + split,
        "|--|--|--|--|--|--|--|--|--|--|--|--|" + ("--|--|--|--|" if easy else ""),
    ]
    spread = variance_of_seeds([points for row in rows for points in settings_of(records, row)])
    for row in rows:
        mine = [r for r in records if r["row"] == row]
        for points in settings_of(records, row):
            macs = statistics.mean(p["macs"] for p in points)
            full = statistics.mean(r["macs_full"] for r in mine)
            setting = ", ".join(f"{k} {v}" for k, v in points[0]["setting"].items())
            share = f"{100 * macs / full:.0f} %"
            line = (
                f"| {row} | {setting} | {len(mine)} | {_accuracy(points, spread)} | {show_count(macs)} | {share} "
                f"| {statistics.mean(p['path_length'] for p in points):.1f} "
                f"| {', '.join(str(p['distinct_paths']) for p in points)} | {show_count(mine[0]['params'])} "
                f"| {statistics.mean(r['seconds'] for r in mine) / 60:.1f} |"
            )
            for of in (0, 1) if easy else ():
                for chosen in (True, False):
                    value = statistics.mean(
                        found[of] for p in points for label, found in p["classes"].items() if (label in easy) is chosen
                    )
                    line += f" {100 * value:.1f} % |" if of else f" {show_count(value)} |"
            lines.append(line)
    return "\n".join(lines)


def exit_table(rows: Sequence[str], records: list[dict[str, Any]]) -> str:
    """Markdown: a line for every exit of every row, all images leaving there."""
    lines = ["| row | exit | MACs | test accuracy | 95 % | by seed |", "|--|--|--|--|--|--|"]
    spread = variance_of_seeds([points for row in rows for points in settings_of(records, row, "exits")])
    for row in rows:
        for k, each in enumerate(settings_of(records, row, "exits"), start=1):
            lines.append(f"| {row} | {k} | {show_count(each[0]['macs'])} | {_accuracy(each, spread)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="in place of the rows' own numbers of seeds")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe, as JSON")
    parser.add_argument("--easy", nargs="+", default=[], metavar="CLASS", help="classes that are told apart as easy")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments.out.mkdir(parents=True, exist_ok=True)
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    rows = arguments.rows or list(FAMILIES[arguments.family].rows)
    for later in (False, True) if not arguments.table else ():
        with ProcessPoolExecutor(arguments.jobs) as pool:
            jobs = []
            for seed, row in itertools.product(arguments.seeds or range(3), rows):
                if arguments.seeds or seed < FAMILIES[arguments.family].rows[row].seeds:
                    file = arguments.out / f"{row.replace(' ', '_')}-{seed}.json"
                    wanted = begun_behind(arguments.family, row)
                    there = file.exists() and (not wanted or checkpoint(arguments.out, row, seed).exists())
                    if not there and bool(FAMILIES[arguments.family].rows[row].behind) is later:
                        given = (arguments.family, row, seed, arguments.data, arguments.epochs, changes, file)
                        jobs.append(pool.submit(train, *given))
            for job in as_completed(jobs):
                job.result()
    records = [json.loads(file.read_text()) for file in sorted(arguments.out.glob("*.json"))]
    print(table(rows, records, arguments.easy))
    if any(record["exits"] for record in records):
        print("\nAll images leave at one exit:\n")
        print(exit_table(rows, records))


if __name__ == "__main__":
    main()
