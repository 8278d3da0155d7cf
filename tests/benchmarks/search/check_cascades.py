"""Whether what is expected of composed cascades holds: the optimism of a front on studies made for it.

    python tests/benchmarks/search/check_cascades.py [--studies 20] [--trials 12] [--kept FOLDER] [--rules all]

Every study trains small networks of three kinds on digits that were made harder (noise, patches taken out), on a split
of its own: 300 images to train, 360 to validate, the other 1137 to test. Cascades are composed from the validation
split alone. Then they are executed on the test split. Optimism is the accuracy that was told minus that on the test
split, averaged over budgets evenly in log MACs. One split's images may be easier than the other's: the mean difference
of all operating points, of which none is chosen, is taken off (a control variate, whose expectation is 0). What was
trained is kept in FOLDER, so that another estimate can be scored without training again.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.cascades.members import Member, Members
from search.cascades.selection import Rule, select
from search.cascades.sweep import Chain, execute
from search.pareto.front import front_layers
from trainables.data import datasets
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data, Split
from trainables.inference import predictions as kept
from trainables.inference.predictions import Collected, Predictions
from trainables.registry import get_method
from trainables.training.training import Training

TRAIN, VALIDATION, BUDGETS, MEMBERS = 300, 360, 24, 60


def harder(seed: int) -> Data:
    """All digits at 8 pixels under noise and with a patch of three pixels taken out, split anew."""
    known = datasets.load("digits", root=Path("unused"), image_size=8)
    parts = (known.train, known.validation, known.test)
    images = np.concatenate([part.decoded() for part in parts]).astype(float)
    labels = np.concatenate([part.labels for part in parts])
    random = np.random.default_rng(seed)
    images += random.normal(0, 48, images.shape)
    for image in images:
        x, y = random.integers(0, 6, 2)
        image[:, x : x + 3, y : y + 3] = random.integers(0, 255)
    images = np.clip(images, 0, 255).astype(np.uint8)
    order = random.permutation(len(labels))
    bounds = np.split(order, [TRAIN, TRAIN + VALIDATION])
    train, validation, test = (Split(images[part], labels[part]) for part in bounds)
    return replace(known, train=train, validation=validation, test=test)


def trained(seed: int, trials: int, epochs: int, folder: Path) -> None:
    """Train a study's networks and keep what they answer on both splits."""
    data, random = harder(seed), np.random.default_rng(1000 + seed)
    for trial in range(trials):
        name = ("static", "skipnet", "imta")[trial % 3]
        network = "msdnet-3" if name == "imta" else str(random.choice(["resnet-8", "resnet-14"]))
        values = {
            "network": network, "width": float(random.choice([0.125, 0.25, 0.5])), "batch_size": 32,
            "lr": float(10 ** random.uniform(-1.6, -0.7)),
        }  # fmt: skip
        method = get_method(name)
        config = method.configure(values)
        training = Training(method, config, data, epochs=epochs, seed=100 * seed + trial, predictions=True)
        while not training.done:
            report = training.step()
        assert training.last_curve is not None and training.last_curve.predictions is not None
        kept.write(folder / f"{trial:02d}-validation.npz", training.last_curve.predictions)
        images, labels = to_device(data.test, "cpu")
        inputs = normalise(images, data.for_config(config))
        knobs = [point["knobs"] for point in report["curve"]["points"]]
        answers = [Collected() for _ in knobs]
        with torch.no_grad():
            for batch in inputs.split(128):
                for each, result in zip(answers, training.network.eval().sweep(batch, knobs), strict=True):
                    each.add(result)
        kept.write(folder / f"{trial:02d}-test.npz", Predictions.collected(answers, labels))


def members_in(folder: Path, split: str, places: list[tuple[Path, int]] | None = None) -> tuple[Members, list]:
    """The points of a study that are on its first fronts of the validation split, with their answers on a split."""
    files = {path: kept.read(path) for path in sorted(folder.glob("*-validation.npz"))}
    if places is None:
        every = [(path, s) for path, each in files.items() for s in range(each.settings)]
        error = np.array([(files[p].of(s).argmax(1) != files[p].labels).mean() for p, s in every])
        macs = np.array([files[p].macs[s].mean() for p, s in every])
        order = np.lexsort((macs, front_layers(error, macs)))[:MEMBERS]
        places = [every[i] for i in np.sort(order).tolist()]
    if split == "test":
        files = {path: kept.read(path.with_name(path.name.replace("validation", "test"))) for path in files}
    found = [(files[path], setting) for path, setting in places]
    labels = found[0][0].labels
    names = [Member("", path.name[:2], 1, s, "", "", "", {}, "", "", 0, 0, 0, 0, 0) for path, s in places]
    family = [int(p.name[:2]) if files[p].exits is not None else 1000 + i for i, (p, _) in enumerate(places)]
    correct = np.stack([p.of(s).argmax(axis=1) == labels for p, s in found])
    macs = np.stack([p.macs[s] for p, s in found])
    return Members(names, labels, macs, correct, np.array(family), found), places


def within(macs: np.ndarray, accuracy: np.ndarray, budget: float) -> int | None:
    """The place of the most accurate within a budget."""
    fit = np.flatnonzero(macs <= budget)
    return int(fit[np.argmax(accuracy[fit])]) if len(fit) else None


def scored(folder: Path, rules: list[Rule], splits: int, most: int) -> dict[str, list[float]]:
    """Optimism of what is told of a study's cascades, budget by budget, and what they gain on the test split."""
    members, places = members_in(folder, "validation")
    test, _ = members_in(folder, "test", places)
    selection = select(members, rules, most_members=most, splits=splits)
    control = float(members.correct.mean() - test.correct.mean())
    by = {}
    rows: dict[str, list[float]] = {"told": [], "expected": [], "test": [], "single": [], "single-test": [], "cost": []}
    front = selection.front
    macs, accuracy = np.array([c.macs for c in front]), np.array([c.accuracy for c in front])
    own, alone = members.macs.mean(1), members.correct.mean(1)
    for budget in np.geomspace(own.min() * 1.05, own.max(), BUDGETS).tolist():
        place, best = within(macs, accuracy, budget), within(own, alone, budget)
        if place is None or best is None:
            continue
        chosen = front[place]
        key = chosen.rule, chosen.temperatures, chosen.chain.members
        if key not in by:
            whole = [1.0] * len(members.members)
            for member, temperature in zip(chosen.chain.members, chosen.temperatures, strict=True):
                whole[member] = temperature
            by[key] = test.answers(chosen.rule.kind, chosen.rule.answer, whole)
        done = execute(by[key], Chain(chosen.chain.members, chosen.chain.thresholds))
        rows["told"].append(chosen.accuracy)
        rows["expected"].append(chosen.expected)
        rows["test"].append(float(done.correct.mean()) + control)
        rows["cost"].append(float(done.macs.mean()) / chosen.macs)
        rows["single"].append(float(alone[best]))
        rows["single-test"].append(float(test.correct[best].mean()) + control)
    rows["compared"] = [float(selection.compared)]
    return rows


def main() -> None:
    """Train what is missing, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--rules", default="usual", choices=["usual", "all"])
    parser.add_argument("--kept", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("probability",) if asked.rules == "usual" else ("probability", "margin", "entropy")
    rules = [Rule(kind, answer) for kind in kinds for answer in ("last", "mean")]
    told = []
    print(
        "| study | raw optimism | expected - test | single's optimism | gain on test | MACs on test | s |\n"
        + "|---" * 7
        + "|"
    )
    for seed in range(asked.studies):
        began, folder = time.perf_counter(), asked.kept / f"study-{seed:02d}"
        if not (folder / "whole").exists():
            folder.mkdir(parents=True, exist_ok=True)
            trained(seed, asked.trials, asked.epochs, folder)
            (folder / "whole").touch()
        rows = {name: np.array(values) for name, values in scored(folder, rules, asked.splits, asked.members).items()}
        one = (
            rows["told"] - rows["test"], rows["expected"] - rows["test"], rows["single"] - rows["single-test"],
            rows["test"] - rows["single-test"],
        )  # fmt: skip
        told.append([100 * float(each.mean()) for each in one] + [float(rows["cost"].mean())])
        text = " | ".join(f"{value:+.2f}" for value in told[-1][:4])
        print(f"| {seed} | {text} | {told[-1][4]:.3f} | {time.perf_counter() - began:.0f} |", flush=True)
    mean = np.mean(told, axis=0)
    spread = np.std(told, axis=0, ddof=1) / np.sqrt(len(told)) if len(told) > 1 else np.zeros(5)
    cells = " | ".join(f"{m:+.2f} ± {1.96 * s:.2f}" for m, s in zip(mean[:4], spread[:4], strict=True))
    print(f"| mean, 95 % | {cells} | {mean[4]:.3f} | |")


if __name__ == "__main__":
    main()
