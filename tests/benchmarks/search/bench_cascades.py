"""What composing costs: every pair at every threshold, longer cascades, memory, and what keeping predictions costs.

    python tests/benchmarks/search/bench_cascades.py [--points 200] [--images 5000] [--classes 10] [--seed 0]
    python tests/benchmarks/search/bench_cascades.py --trial         # a real trial's share, and a report's with pairs


Members are drawn: of rising skill and cost, erring on the same hard images. Prints wall and processor time (a busy
machine changes the latter less) and the largest memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.cascades.sweep import Answers, longer, pairs
from trainables.contracts.network import Inference
from trainables.inference import predictions as kept
from trainables.inference import rules
from trainables.inference.predictions import Collected, Predictions


def drawn(points: int, images: int, classes: int, seed: int, mean: bool) -> Answers:
    """Answers of members as a study's points give them."""
    draw = np.random.default_rng(seed)
    labels, hard = draw.integers(0, classes, images), draw.normal(size=images)
    skills = np.linspace(0, 2.2, points) + 0.1 * draw.normal(size=points)
    doubts, correct = np.empty((points, images), np.float32), np.empty((points, images), bool)
    macs = np.empty((points, images))
    totals = np.empty((points, classes, images), np.int32) if mean else None
    for member, skill in enumerate(skills):
        logits = draw.normal(size=(images, classes))
        logits[np.arange(images), labels] += 2.0 + skill - 1.5 * hard
        raised = np.exp(1.5 * logits)
        shares = (raised / raised.sum(1, keepdims=True)).astype(np.float16).astype(np.float32)
        doubts[member], correct[member] = rules.doubt(shares, "probability"), shares.argmax(1) == labels
        macs[member] = 1e6 * np.exp(1.8 * skill) * (0.8 + 0.4 * draw.random(images))
        if totals is not None:
            totals[member] = rules.scores(shares).T
            correct[member] = totals[member].argmax(0) == labels
    return Answers(doubts, correct, macs, np.arange(points), labels, totals)


def timed(what: str, began: tuple[float, float], **more: object) -> None:
    """One row."""
    wall, used = time.perf_counter() - began[0], time.process_time() - began[1]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    told = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in more.items()
    )
    print(f"| {what} | {wall:.1f} | {used:.1f} | {memory:.0f} | {told} |", flush=True)


def now() -> tuple[float, float]:
    """Wall and processor time."""
    return time.perf_counter(), time.process_time()


def keeping(images: int, classes: int, settings: int = 20, units: int = 54) -> None:
    """What one checkpoint's file costs."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=draw)
    answers = []
    for _ in range(settings):
        path = torch.rand(images, units, generator=draw).round()
        logits = 1.5 * torch.randn(images, classes, generator=draw)
        logits[torch.arange(images), labels] += 4
        each = Collected()
        each.add(Inference(logits, path, 1e6 + 1e4 * path.double().sum(1), path))
        answers.append(each)
    with tempfile.TemporaryDirectory() as folder:
        began, path = now(), Path(folder) / kept.PREDICTIONS
        kept.write(path, Predictions.collected(answers, labels))
        size = path.stat().st_size
        timed(f"keep {settings} settings, {images} images, {classes} classes", began, MB=round(size / 1e6, 2))
        began = now()
        kept.read(path)
        timed("read it", began)


def trial() -> None:
    """The share of a real trial's processor time that keeping takes: SkipNet on the digits, a curve at 1, 3, 9 epochs.

    Then what a report costs the driver whose objective has fronts with cascades: a new network with 12 partners of six
    points each, pairs of 5,000 images and 10 classes answered by the last and by the mean, both ways.
    """
    from trainables.data.datasets import default_root, load
    from trainables.registry import get_method
    from trainables.training import training as module
    from trainables.training.training import Training

    spent = [0.0]

    def timing(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.process_time() - began

        return run

    collected, written = Predictions.collected, module.write_predictions
    Predictions.collected = timing(collected)  # type: ignore[method-assign]
    module.write_predictions = timing(written)
    torch.set_num_threads(1)
    method, began = get_method("skipnet"), time.process_time()
    config = method.configure({"network": "resnet-20", "width": 0.5, "batch_size": 64})
    data = load("digits", root=default_root())
    training = Training(method, config, data, epochs=9, seed=0, evaluate_at=[1, 3, 9], predictions=True)
    with tempfile.TemporaryDirectory() as folder:
        while not training.done:
            training.step()
            training.save(Path(folder) / f"epoch-{training.epoch:04d}", {})
        size = sum(p.stat().st_size for p in Path(folder).glob(f"epoch-0009/{kept.PREDICTIONS}"))
    used = time.process_time() - began
    share = f"{spent[0]:.2f} of {used:.1f} s of a processor, {spent[0] / used:.2%}"
    print(f"keeping predictions: {share}, {size / 1e3:.0f} kB")

    from search.cascades.selection import halves
    from search.cascades.worth import BUDGETS, POINTS, _joined, _scored

    networks = []
    for number in range(13):
        parts = drawn(POINTS, 5000, 10, number, True)
        networks.append((replace(parts, scores=None), parts))
    labels = networks[0][0].labels
    networks = [(replace(a, labels=labels), replace(b, labels=labels)) for a, b in networks]
    ways, began = halves(labels, 0), time.process_time()
    for number, other in enumerate(networks):
        both = [a if number == 0 else _joined(a, b) for a, b in zip(networks[0], other, strict=True)]
        budgets = np.geomspace(both[0].macs.mean(1).min(), 2 * both[0].macs.mean(1).max(), BUDGETS)
        for way in (ways, ways[::-1]):
            _scored(both, POINTS, *way, budgets)
    print(f"a report with 12 partners: {time.process_time() - began:.2f} s of a processor")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("points", 200), ("images", 5000), ("classes", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--trial", action="store_true")
    asked = parser.parse_args()
    if asked.trial:
        trial()
        return
    print("| what | s | processor s | MB, largest so far | |\n|---|---|---|---|---|")
    for classes in (10, 100):
        keeping(asked.images, classes)
    for mean in (False, True):
        answers = drawn(asked.points, asked.images, asked.classes, asked.seed, mean)
        answer, began = "mean" if mean else "last", now()
        found = pairs(answers)
        timed(f"pairs, {answer}", began, front=len(found.chains), compared=found.compared)
        began = now()
        more = longer(answers, found)
        timed(f"triples from the best, {answer}", began, front=len(more.chains), compared=more.compared)


if __name__ == "__main__":
    main()
