"""Whether it pays to search for a front with cascades: the same studies with ``objective.front`` one way and the other.

    python tests/benchmarks/search/check_worth.py --kept FOLDER [--studies 4] [--trials 16] [--epochs 6]

Harder digits (`check_cascades.py`), three methods, one worker, a rung at a third of the epochs. What a study has
trained is composed (pairs), and single points and cascades are chosen on the validation split at `BUDGETS` budgets and
scored on the test split: the mean accuracy over budgets, evenly over log MACs. Both ways have the same images and
seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.cascades.members import Members, members_of
from search.spec.study import StudySpec
from search.study import Study
from tests.benchmarks.search.bench_composed import Sides, cascade_picks, single_picks
from tests.benchmarks.search.check_cascades import harder
from tests.support.in_process import search
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data
from trainables.inference.predictions import Collected, Predictions
from trainables.serving import load_network

BUDGETS = np.geomspace(0.06e6, 1.5e6, 24)
WIDTHS = [0.125, 0.25, 0.5]
METHODS = {
    "static": {"network": ["resnet-8", "resnet-14"], "width": WIDTHS, "batch_size": 32},
    "skipnet": {"network": ["resnet-8", "resnet-14"], "width": WIDTHS, "batch_size": 32},
    "imta": {"network": ["msdnet-2", "msdnet-3"], "width": WIDTHS, "batch_size": 32},
}


def spec(seed: int, front: str, trials: int, epochs: int) -> StudySpec:
    """One study."""
    return StudySpec.parse(
        {
            "name": f"{front}-{seed:02d}",
            "seed": seed,
            "data": {"name": "digits", "image_size": 8},
            "budget": {"trials": trials, "epochs": epochs},
            "rungs": {"epochs": [max(1, epochs // 3)]},
            "sampler": {"startup": 5, "published": False},
            "resources": {"workers": 1},
            "diagnostics": False,
            "objective": {"front": front},
            "methods": METHODS,
        }
    )


def sides(study: Study, data: Data) -> Sides:
    """The points of a study's first fronts with what they answer on the test split, too."""
    validation = members_of([study], [study.state()], most=60)
    images, labels = to_device(data.test, "cpu")
    known: dict[str, Predictions] = {}
    for name in {member.checkpoint for member in validation.members}:
        _, network, _ = load_network(study.folder.checkpoints / name)
        knobs = [member.knobs for member in validation.members if member.checkpoint == name]
        answers = [Collected() for _ in knobs]
        with torch.no_grad():
            for batch in normalise(images, data.for_config(network.config)).split(128):
                for each, result in zip(answers, network.eval().sweep(batch, knobs), strict=True):
                    each.add(result)
        known[name] = Predictions.collected(answers, labels)
    places: dict[str, int] = {}
    kept = []
    for member in validation.members:
        at = places[member.checkpoint] = places.get(member.checkpoint, -1) + 1
        kept.append((known[member.checkpoint], at))
    correct = np.stack([each.of(s).argmax(1) == each.labels for each, s in kept])
    macs = np.stack([each.macs[s] for each, s in kept])
    test = Members(validation.members, kept[0][0].labels, macs, correct, validation.family, kept)
    methods = [member.method for member in validation.members]
    return Sides(validation, test, methods, len(known), 0.0)


def main() -> None:
    """Search, compose, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, required=True)
    for name, value in (("studies", 4), ("trials", 16), ("epochs", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| study | front | epochs | single | with cascades | processor s |\n|---|---|---|---|---|---|")
    found: dict[str, list[list[float]]] = {}
    for seed in range(asked.studies):
        data = harder(seed)
        for front in ("networks", "cascades"):
            began = time.process_time()
            study = Study.create(spec(seed, front, asked.trials, asked.epochs), root=asked.kept, data=data)
            search(study, data)
            own = sides(study, data)
            picks = single_picks(own, BUDGETS.tolist()), cascade_picks(own, BUDGETS.tolist(), 0, 2)[0]
            chance = 1 / data.task.classes  # what nothing within a budget is worth
            scored = [[chance if p is None else float(p.correct.mean()) for p in each] for each in picks]
            row = [100 * float(np.mean(each)) for each in scored]
            found.setdefault(front, []).append(row)
            epochs = study.state().cost_epochs
            cells = f"{epochs:.0f} | {row[0]:.2f} | {row[1]:.2f} | {time.process_time() - began:.0f}"
            print(f"| {seed} | {front} | {cells} |", flush=True)
    gain = np.array(found["cascades"]) - np.array(found["networks"])
    error = gain.std(axis=0, ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.full(2, np.nan)
    told = " | ".join(f"{m:+.2f} ± {1.96 * e:.2f}" for m, e in zip(gain.mean(axis=0), error, strict=True))
    print(f"| mean | cascades - networks, 95 % | | {told} | |")


if __name__ == "__main__":
    main()
