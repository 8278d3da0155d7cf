"""What composing costs: every pair at every threshold, longer cascades, memory, and what keeping predictions costs.

    python tests/benchmarks/search/bench_cascades.py [--points 200] [--images 5000] [--classes 10] [--seed 0]

Members are drawn: of rising skill and cost, erring on the same hard images. Prints wall and processor time (a busy
machine changes the latter less) and the largest memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("points", 200), ("images", 5000), ("classes", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
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
