"""What cascades add to the front of a study, on the test split, out of a folder of kept answers of trained networks.

    python tests/benchmarks/search/bench_composed.py FOLDER [--seeds 5] [--members 3] [--most 200]

FOLDER has one ``.npz`` a network: ``config`` (JSON text), and for ``validation`` and ``test`` images ``labels_SPLIT``
(n,), ``probabilities_SPLIT`` (S, n, C) float16 and ``macs_SPLIT`` (S, n), S the settings of its curve
(`record_table.py` writes them). All are points of one study; everything is chosen on the validation split, by the
product's own functions, and looked at on the test split. At every budget:

* *single*: the single point of the highest validation accuracy within the budget;
* *cascades*: the front with cascades, which compares what is expected of a cascade with what was measured of a single
  point. It is chosen with as many seeds of the halves as asked for; accuracies are means over them, and intervals are
  of the difference from *single*, by a paired bootstrap of the test images, 95 %;
* *random*: 200 random pairs, the cheaper member first, as many images going on as the budget allows; the mean of them;
* *by hand*: the most accurate single point within half of the budget goes first, the most accurate within twice the
  budget second; of ten thresholds 0.05, 0.15, ... 0.95 on the maximum probability the most accurate within the budget;
* *ensemble*: the mean of two points, all images on both, the most accurate pair within the budget; a third point where
  it is still within the budget and more accurate then.

*Fewer MACs*: how many times fewer MACs the front with cascades takes to be as accurate on the test images as the single
point within the budget, both read from curves of test accuracy over MACs that were made monotone (isotonic regression).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.cascades.compose import RULES
from search.cascades.members import Member, Members
from search.cascades.selection import select
from search.cascades.sweep import Answers, Chain, execute
from search.pareto.front import front_layers, non_dominated
from trainables.inference.predictions import Predictions

BUDGETS = np.geomspace(0.5e6, 60e6, 12)
CHAINS = ("imta", "exits")
"""Methods whose images leave along a chain of exits: two settings of one network share what both execute."""
_PAIRS, _FEW, _RESAMPLES = 200, 60, 2000


@dataclass
class Sides:
    """Points of one study on both splits; `methods` by point."""

    validation: Members
    test: Members
    methods: list[str]
    networks: int
    megabytes: float

    def only(self, places: Sequence[int]) -> Sides:
        """Some of the points."""
        chosen = self.validation.only(places), self.test.only(places)
        methods = [self.methods[i] for i in places]
        networks = len({m.trial for m in chosen[0].members})
        return Sides(*chosen, methods, networks, self.megabytes)


def read(folder: Path) -> Sides:
    """All settings of all networks of a folder."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise SystemExit(f"no .npz in {folder}")
    sides: dict[str, list] = {}
    members, methods, family, labels = [], [], [], {}
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        method = json.loads(str(arrays["config"]))["method"]
        for split in ("validation", "test"):
            if not np.array_equal(labels.setdefault(split, arrays[f"labels_{split}"]), arrays[f"labels_{split}"]):
                raise SystemExit(f"{file} was measured on another {split} split than {files[0]}")
        for setting in range(len(arrays["macs_validation"])):
            for split in ("validation", "test"):
                every, macs = arrays[f"probabilities_{split}"][setting], arrays[f"macs_{split}"][setting]
                own = labels[split].astype(np.uint16)
                path = np.zeros((1, len(own), 1), np.float16)
                kept = Predictions(every.shape[1], own, macs[None].astype(float), path, every=every[None])
                sides.setdefault(split, []).append((kept, 0))
            members.append(Member("table", file.stem, 1, setting, method, "", "", {}, "", "", 0, 0, 0, 0, 0))
            methods.append(method)
            family.append(file.stem if method in CHAINS else f"{file.stem}-{setting}")
    both = []
    codes = np.unique(family, return_inverse=True)[1]
    for split in ("validation", "test"):
        kept, own = sides[split], labels[split].astype(np.uint16)
        correct = np.stack([each.of(0).argmax(1) == own for each, _ in kept])
        macs = np.stack([each.macs[0] for each, _ in kept])
        both.append(Members(members, own, macs, correct, codes.astype(np.int64), kept))
    size = sum(file.stat().st_size for file in files) / 1e6
    return Sides(both[0], both[1], methods, len(files), size)


def first_fronts(sides: Sides, most: int) -> Sides:
    """At most so many points: those of the first fronts on the validation split, as composing takes them."""
    error, macs = 1 - sides.validation.correct.mean(1), sides.validation.macs.mean(1)
    chosen = np.lexsort((macs, front_layers(error, macs)))[:most]
    return sides.only(np.sort(chosen).tolist())


@dataclass
class Pick:
    """What is chosen within a budget: MACs by validation, and per test image whether it is right and what it costs."""

    correct: np.ndarray
    macs: np.ndarray


def single_picks(sides: Sides, budgets: Sequence[float]) -> list[Pick | None]:
    """The most accurate single point within each budget."""
    accuracy, macs = sides.validation.correct.mean(1), sides.validation.macs.mean(1)
    picks: list[Pick | None] = []
    for budget in budgets:
        fit = np.flatnonzero(macs <= budget)
        if not len(fit):
            picks.append(None)
            continue
        best = fit[np.lexsort((macs[fit], -accuracy[fit]))[0]]
        picks.append(Pick(sides.test.correct[best], sides.test.macs[best]))
    return picks


def cascade_picks(sides: Sides, budgets: Sequence[float], seed: int, most: int) -> tuple[list[Pick | None], int]:
    """Of the front with cascades the best within each budget; how many cascades were compared."""
    selection = select(sides.validation, RULES, most_members=most, splits=2, seed=seed)
    accuracy, macs = sides.validation.correct.mean(1), sides.validation.macs.mean(1)
    rows = [(float(a), float(m), place) for place, (a, m) in enumerate(zip(accuracy, macs, strict=True))]
    rows += [(c.expected, c.macs, c) for c in selection.front if len(c.chain.members) > 1]
    keep = np.flatnonzero(non_dominated([1 - row[0] for row in rows], [row[1] for row in rows]))
    front = sorted((rows[i] for i in keep.tolist()), key=lambda row: row[1])
    costs = np.array([row[1] for row in front])
    done: dict[int, Pick] = {}
    picks: list[Pick | None] = []
    for budget in budgets:
        place = int(np.searchsorted(costs, budget, side="right")) - 1
        if place < 0:
            picks.append(None)
            continue
        if place not in done:
            chosen = front[place][2]
            if isinstance(chosen, int):
                done[place] = Pick(sides.test.correct[chosen], sides.test.macs[chosen])
            else:
                own = sides.test.only(chosen.chain.members)
                answers = own.answers(chosen.rule.kind, chosen.rule.answer, chosen.temperatures)
                chain = Chain(tuple(range(len(chosen.chain.members))), chosen.chain.thresholds)
                executed = execute(answers, chain)
                done[place] = Pick(executed.correct, executed.macs)
        picks.append(done[place])
    return picks, selection.compared


def random_pairs(sides: Sides, one: Answers, test: Answers, budget: float) -> float | None:
    """The mean test accuracy of random pairs that spend the budget."""
    draw, macs, found = np.random.default_rng(0), one.macs.mean(1), []
    first = np.flatnonzero(macs <= budget)
    if not len(first) or len(macs) < 2:
        return None
    for _ in range(_PAIRS):
        a = int(draw.choice(first))
        dearer = np.flatnonzero(macs > macs[a])
        if not len(dearer):
            continue
        b = int(draw.choice(dearer))
        share = min(1.0, (budget - macs[a]) / macs[b])
        threshold = float(np.quantile(one.doubts[a], 1 - share)) if share < 1 else -1.0
        found.append(float(execute(test, Chain((a, b), (threshold,))).correct.mean()))
    return float(np.mean(found)) if found else None


def by_hand(one: Answers, test: Answers, budget: float) -> float | None:
    """The test accuracy of the pair that somebody would write down; see the top."""
    accuracy, macs = one.correct.mean(1), one.macs.mean(1)

    def best(limit: float) -> int | None:
        fit = np.flatnonzero(macs <= limit)
        return int(fit[np.argmax(accuracy[fit])]) if len(fit) else None

    a, b = best(budget / 2), best(2 * budget)
    if a is None or b is None:
        return None
    chains = [Chain((a,))] + ([Chain((a, b), (t,)) for t in np.arange(0.05, 1, 0.1).tolist()] if a != b else [])
    done = [execute(one, chain) for chain in chains]
    able = [i for i, each in enumerate(done) if each.macs.mean() <= budget]
    chosen = max(able, key=lambda i: (done[i].correct.mean(), -done[i].macs.mean()))
    return float(execute(test, chains[chosen]).correct.mean())


def ensembles(sides: Sides, budgets: Sequence[float]) -> list[float | None]:
    """The test accuracy of the best ensemble of two or three points within each budget."""
    few = first_fronts(sides, _FEW)
    whole = [1.0] * len(few.methods)
    one, test = (each.answers("probability", "mean", whole) for each in (few.validation, few.test))
    assert one.scores is not None and test.scores is not None
    macs, labels, count = one.macs.mean(1), one.labels, len(whole)
    right = np.zeros((count, count))
    for a in range(count):
        right[a] = ((one.scores[a] + one.scores).argmax(axis=1) == labels).mean(axis=1)
    right[np.diag_indices(count)] = 0
    found: list[float | None] = []
    for budget in budgets:
        able = np.where(macs[:, None] + macs[None] <= budget, right, 0)
        if able.max() == 0:
            found.append(None)
            continue
        a, b = np.unravel_index(int(able.argmax()), able.shape)
        total, on_test = one.scores[a] + one.scores[b], test.scores[a] + test.scores[b]
        thirds = [c for c in range(count) if c not in (a, b) and macs[a] + macs[b] + macs[c] <= budget]
        more = [float(((total + one.scores[c]).argmax(0) == labels).mean()) for c in thirds]
        if more and max(more) > able.max():
            on_test = on_test + test.scores[thirds[int(np.argmax(more))]]
        found.append(float((on_test.argmax(0) == test.labels).mean()))
    return found


def interval(seeds: Sequence[np.ndarray], single: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean difference from single, by resampling test images."""
    difference = np.mean([each.astype(float) for each in seeds], axis=0) - single.astype(float)
    draw = np.random.default_rng(0)
    means = [difference[draw.integers(0, len(single), len(single))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def monotone(picks: Sequence[Pick | None]) -> tuple[np.ndarray, np.ndarray]:
    """Log MACs and a rising test accuracy over them."""
    there = [pick for pick in picks if pick is not None]
    x, y = np.log([pick.macs.mean() for pick in there]), np.array([pick.correct.mean() for pick in there])
    order = np.argsort(x, kind="stable")
    return x[order], IsotonicRegression().fit_transform(x[order], y[order])


def fewer(single: Sequence[Pick | None], fronts: Sequence[Sequence[Pick | None]], places: Sequence[int]) -> list[float]:
    """By place in a fine list of budgets how many times fewer MACs fronts with cascades take, in the mean of seeds."""
    x, y = monotone(single)
    curves = [monotone(front) for front in fronts]
    found = []
    for place in places:
        pick = single[place]
        assert pick is not None
        level = y[np.searchsorted(x, np.log(pick.macs.mean()), side="right") - 1]
        own = x[int(np.argmax(y >= level - 1e-12))]  # the cheapest single point that is as accurate
        ratios = [own - u[int(np.argmax(v >= level - 1e-12))] if v[-1] >= level - 1e-12 else np.nan for u, v in curves]
        found.append(float(np.exp(np.mean(ratios))))
    return found


def compare(sides: Sides, seeds: int, most: int, say: Callable[[str], None]) -> tuple[dict[float, dict], dict]:
    """Rows by budget, and figures of the whole."""
    costs = sides.validation.macs.mean(1)
    fine = np.unique(np.concatenate([np.geomspace(costs.min(), max(costs.max(), BUDGETS[-1]), 240), BUDGETS]))
    began, fronts, compared = time.perf_counter(), [], 0
    for seed in range(seeds):
        picks, compared = cascade_picks(sides, fine.tolist(), seed, most)
        fronts.append(picks)
        say(f"seed {seed}: {compared:,} compared, {time.perf_counter() - began:.0f} s")
    seconds = (time.perf_counter() - began) / seeds
    single, together = single_picks(sides, fine.tolist()), ensembles(sides, BUDGETS.tolist())
    whole = [1.0] * len(sides.methods)
    one, test = (each.answers("probability", "last", whole) for each in (sides.validation, sides.test))
    top = float(costs.max())
    rows: dict[float, dict] = {}
    reached = [b for b in BUDGETS.tolist() if b >= costs.min()]
    beyond = [b for b in reached if b >= top][:1]  # behind the dearest point all budgets are the same
    reached = [b for b in reached if b < top] + beyond
    places = [int(np.searchsorted(fine, b)) for b in reached]
    ratios = fewer(single, fronts, places)
    for budget, place, ratio in zip(reached, places, ratios, strict=True):
        alone, each = single[place], [front[place] for front in fronts]
        assert alone is not None
        bits = [pick.correct for pick in each if pick is not None]
        low, high = interval(bits, alone.correct)
        rows[budget] = {
            "single": float(alone.correct.mean()),
            "cascades": float(np.mean([b.mean() for b in bits])),
            "low": low, "high": high, "fewer": ratio,
            "over": float(np.mean([p.macs.mean() for p in each if p is not None]) / budget),
            "random": random_pairs(sides, one, test, budget),
            "hand": by_hand(one, test, budget),
            "ensemble": together[BUDGETS.tolist().index(budget)],
        }  # fmt: skip
    lower = ratios[: (len(ratios) + 1) // 2]
    last = rows[reached[-1]]
    best = float(sides.test.correct[int(np.lexsort((costs, -sides.validation.correct.mean(1)))[0])].mean())
    told = {
        "worse": sum(row["high"] < 0 for row in rows.values()),
        "lower": float(np.nanmedian(lower)), "median": float(np.nanmedian(ratios)),
        "top": 100 * (last["cascades"] - best), "seconds": seconds, "compared": compared,
    }  # fmt: skip
    return rows, told


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--most", type=int, default=200)
    asked = parser.parse_args()
    every = read(asked.folder)
    static = [i for i, method in enumerate(every.methods) if method == "static"]
    parts = {"all methods": first_fronts(every, asked.most)}
    if len({every.validation.members[i].trial for i in static}) > 1:
        parts["static alone"] = first_fronts(every.only(static), asked.most)
    print(
        f"{every.networks} networks, {len(every.methods)} points, {every.megabytes:.0f} MB kept of"
        f" {len(every.validation.labels)} validation and {len(every.test.labels)} test images\n"
    )
    heads = [
        "budget, M",
        "single",
        "cascades",
        "difference, 95 %",
        "MACs",
        "fewer MACs",
        "random",
        "by hand",
        "ensemble",
    ]
    print(f"| members | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    goals = []
    for name, sides in parts.items():
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        rows, told = compare(sides, asked.seeds, asked.members, say)
        for budget, row in rows.items():
            shares = [row["single"], row["cascades"]]
            others = [row["random"], row["hand"], row["ensemble"]]
            cells = [f"{budget / 1e6:.2f}", *(f"{100 * s:.1f}" for s in shares)]
            cells += [f"{100 * (shares[1] - shares[0]):+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"]
            cells += [f"{row['over']:.2f}", "-" if np.isnan(row["fewer"]) else f"{row['fewer']:.2f}"]
            cells += ["-" if other is None else f"{100 * other:.1f}" for other in others]
            print(f"| {name} | {' | '.join(cells)} |")
        goals.append(
            f"{name} ({sides.networks} networks, {len(sides.methods)} points on the first fronts): worse than the best"
            f" single point at {told['worse']} of {len(rows)} budgets (goal 0); fewer MACs at equal test accuracy"
            f" {told['lower']:.2f} times in the median of the lower half (goal 1.5), {told['median']:.2f} of all (goal"
            f" 1.2); {told['top']:+.1f} points above the best single network at the top (goal +0.5);"
            f" {told['compared']:,} compared in {told['seconds']:.0f} s a seed"
        )
    print("\n" + "\n".join(goals))
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB of memory at most")


if __name__ == "__main__":
    main()
