"""Whether what is expected of composed cascades holds: the optimism of a front on studies made for it.

    python tests/benchmarks/search/check_cascades.py [--studies 20] [--trials 12] [--kept FOLDER] [--rules all]

Every study trains small networks of three kinds on digits that were made harder (noise, patches taken out), on a split
of its own: 300 images to train, 360 to validate, the other 1137 to test. Cascades are composed from the validation
split alone. Then they are executed on the test split. Optimism is the accuracy that was told minus that on the test
split, averaged over budgets evenly in log MACs. One split's images may be easier than the other's: the mean difference
of all operating points, of which none is chosen, is taken off (a control variate, whose expectation is 0). A study's
images that were not trained on are divided into validation and test images several times. What was trained is kept in
FOLDER, so that another estimate can be scored without training again.

Columns, in points of accuracy: optimism of the figure on the validation split, of that less half the loss between
halves, of what is told (less 0.71 times the loss), of the best single point within the budget; what cascades gain on
the test images over single points; their MACs there over those that were told.
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
        report = {}
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


def drawn(folder: Path, redraw: int) -> tuple[Members, Members, float]:
    """The first fronts of a study by a validation split, with their answers on it and on the rest; the control.

    No network was trained on any of these images, so each redraw parts them anew and is a replicate of its own; the
    first one is the split that was there during training.
    """
    files, names = [], sorted(folder.glob("*-validation.npz"))
    for path in names:
        files.append((kept.read(path), kept.read(path.with_name(path.name.replace("validation", "test")))))
    labels = np.concatenate([each.labels for each in files[0]])
    order = np.arange(len(labels)) if redraw == 0 else np.random.default_rng(redraw).permutation(len(labels))
    validation, test = order[:VALIDATION], order[VALIDATION:]
    places = [(i, s) for i, pair in enumerate(files) for s in range(pair[0].settings)]
    correct = np.stack([np.concatenate([each.of(s).argmax(1) == each.labels for each in files[i]]) for i, s in places])
    macs = np.stack([np.concatenate([each.macs[s] for each in files[i]]) for i, s in places])
    control = float(correct[:, validation].mean() - correct[:, test].mean())
    error, cost = 1 - correct[:, validation].mean(1), macs[:, validation].mean(1)
    chosen = np.sort(np.lexsort((cost, front_layers(error, cost)))[:MEMBERS])
    sides = []
    for images in (validation, test):
        parts = []
        for place in chosen.tolist():
            i, s = places[place]
            every = np.concatenate([each.of(s) for each in files[i]])[images].astype(np.float16)
            path, own = np.zeros((1, len(images), 1), np.float16), macs[place, images]
            parts.append((Predictions(every.shape[1], labels[images], own[None], path, every=every[None]), 0))
        family = [places[p][0] if files[places[p][0]][0].exits is not None else 1000 + p for p in chosen.tolist()]
        members = [
            Member("", str(places[p][0]), 1, places[p][1], "", "", "", {}, "", "", 0, 0, 0, 0, 0) for p in chosen
        ]
        known = correct[chosen][:, images], np.array(family), parts
        sides.append(Members(members, labels[images], macs[chosen][:, images], *known))
    return sides[0], sides[1], control


def within(macs: np.ndarray, accuracy: np.ndarray, budget: float) -> int | None:
    """The place of the most accurate within a budget."""
    fit = np.flatnonzero(macs <= budget)
    return int(fit[np.argmax(accuracy[fit])]) if len(fit) else None


def scored(folder: Path, rules: list[Rule], splits: int, most: int, redraw: int) -> dict[str, list[float]]:
    """Optimism of what is told of a study's cascades, budget by budget, and what they gain on the test split."""
    members, test, control = drawn(folder, redraw)
    selection = select(members, rules, most_members=most, splits=splits)
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
    parser.add_argument("--redraws", type=int, default=4, help="divisions into validation and test images a study")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--rules", default="usual", choices=["usual", "all"])
    parser.add_argument("--kept", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ("probability",) if asked.rules == "usual" else ("probability", "margin", "entropy")
    rules = [Rule(kind, answer) for kind in kinds for answer in ("last", "mean")]
    folders = [asked.kept / f"study-{seed:02d}" for seed in range(asked.studies)]
    for seed, folder in enumerate(folders):
        if not (folder / "whole").exists():
            folder.mkdir(parents=True, exist_ok=True)
            trained(seed, asked.trials, asked.epochs, folder)
            (folder / "whole").touch()
            print(f"trained study {seed}", file=sys.stderr, flush=True)
    heads = ("study", "raw", "half the loss", "expected", "single", "gain on test", "MACs on test", "s")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    told = []
    for seed, folder in enumerate(folders):
        began, own = time.perf_counter(), []
        for redraw in range(asked.redraws):
            found = scored(folder, rules, asked.splits, asked.members, redraw)
            rows = {name: np.array(values) for name, values in found.items()}
            lost = rows["told"] - rows["expected"]
            one = (
                rows["told"] - rows["test"], rows["told"] - lost * 0.5 / 2**-0.5 - rows["test"],
                rows["expected"] - rows["test"], rows["single"] - rows["single-test"],
                rows["test"] - rows["single-test"],
            )  # fmt: skip
            own.append([100 * float(each.mean()) for each in one] + [float(rows["cost"].mean())])
        told.append(np.mean(own, axis=0))
        text = " | ".join(f"{value:+.2f}" for value in told[-1][:5])
        print(f"| {seed} | {text} | {told[-1][5]:.3f} | {time.perf_counter() - began:.0f} |", flush=True)
    mean = np.mean(told, axis=0)
    spread = np.std(told, axis=0, ddof=1) / np.sqrt(len(told)) if len(told) > 1 else np.zeros(6)
    cells = " | ".join(f"{m:+.2f} ± {1.96 * s:.2f}" for m, s in zip(mean[:5], spread[:5], strict=True))
    print(f"| mean, 95 % | {cells} | {mean[5]:.3f} | |")


if __name__ == "__main__":
    main()
