"""Whether choosing by the expected accuracy finds better networks than choosing by the measured one.

    python tests/benchmarks/search/bench_selection.py [--table tests/benchmarks/search/trainings.json] [--studies 40]
        [--share 0.6] [--budgets 20]

A study is a random share of the recorded trainings (`record_table.py`), each at its last epoch, or at an earlier one as
if a rung had stopped it. It is shown what the even validation images say. Under each of so many budgets of MACs, evenly
spaced by their logarithm, the most accurate point is chosen by what was measured (plain) and by what neighbours let
expect (`search.frontier.expected`, as `frontier --expected` and `promote` do). Both are scored on the *test* images,
which nothing else reads. Printed: the mean gain of the expected choice in points of accuracy with an interval over
studies, how often the choices differ, what the plain choice's figures promise too much and what the expected ones do,
and the best that could have been chosen.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.frontier.expected import Neighbours, Shown
from search.sampling.proposals import seed_of
from tests.benchmarks.search.record_table import spec

TABLE = Path(__file__).with_name("trainings.json")
IMAGES = 500  # even validation images of the subset
STOPPED = 0.5  # share of the trainings that an early rung stopped


def study(rows: Sequence[dict[str, Any]], epochs: int, number: int, share: float) -> list[tuple[Shown, list[float]]]:
    """(what a trial showed, test accuracy by setting) of the trials of one study."""
    rng = random.Random(seed_of("selection", number))
    found = []
    for row in rng.sample(list(rows), max(6, round(share * len(rows)))):
        epoch = epochs // 3 if rng.random() < STOPPED else epochs
        points = row["curves"][str(epoch)]
        errors = [1 - point[0] for point in points]
        shown = Shown(row["config"], epoch, [point[-1] for point in points], errors, IMAGES)
        found.append((shown, [point[2] for point in points]))
    return found


def chosen(shown: Shown, budget: float) -> int | None:
    """The setting with the least error within a budget; None where none fits."""
    fitting = [i for i, macs in enumerate(shown.macs) if macs <= budget]
    return min(fitting, key=lambda i: (shown.error[i], shown.macs[i])) if fitting else None


def compare(trials: Sequence[tuple[Shown, list[float]]], spaces: Any, budgets: Sequence[float]) -> list[list[float]]:
    """By budget [test accuracy of the plain choice, of the expected one, of the best; what both promised]."""
    neighbours, rows = Neighbours(spaces, [shown for shown, _ in trials]), []
    for budget in budgets:
        plain, expected, best = [], [], 0.0
        for i, (shown, tested) in enumerate(trials):
            setting = chosen(shown, budget)
            if setting is None:
                continue
            told, measured = neighbours.expected(i, budget), 1 - shown.error[setting]
            plain.append((measured, tested[setting]))
            expected.append((measured if told is None else 1 - told.error, tested[setting]))
            best = max(best, *(tested[j] for j, macs in enumerate(shown.macs) if macs <= budget))
        if plain:
            (said, got), (hoped, gained) = max(plain), max(expected)
            rows.append([got, gained, best, said, hoped])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--budgets", type=int, default=20)
    given = parser.parse_args()
    table = json.loads(given.table.read_text())
    macs = [point[-1] for row in table["rows"] for point in row["curves"][str(table["epochs"])]]
    budgets = np.geomspace(np.quantile(macs, 0.05), max(macs), given.budgets).tolist()
    spaces = spec(table["epochs"]).spaces()
    means, pairs = [], []
    for number in range(given.studies):
        rows = compare(study(table["rows"], table["epochs"], number, given.share), spaces, budgets)
        means.append(100 * np.mean(rows, 0))
        pairs += [(row[0], row[1]) for row in rows]
    got, gained, best, said, hoped = np.transpose(means)

    def interval(values: np.ndarray) -> str:
        half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
        return f"{values.mean():+.2f} ({values.mean() - half:+.2f} to {values.mean() + half:+.2f})"

    differ = [b - a for a, b in pairs if a != b]
    count = len(table["rows"])
    print(f"{count} trainings, {given.studies} studies of {given.share:.0%}, {given.budgets} budgets; in points")
    print(f"test accuracy, chosen by measured figures      {got.mean():.2f}")
    print(f"test accuracy, chosen by expected figures      {gained.mean():.2f}, gain {interval(gained - got)}")
    print(f"test accuracy of the best                      {best.mean():.2f}")
    print(f"promised too much: measured {interval(said - got)}, expected {interval(hoped - gained)}")
    print(f"choices that differ: {len(differ)} of {len(pairs)}, better {sum(d > 0 for d in differ)}")


if __name__ == "__main__":
    main()
