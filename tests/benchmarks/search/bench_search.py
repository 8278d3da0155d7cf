"""Search quality in virtual time: our search against Ray's and Optuna's, and against itself with parts left out.

    python tests/benchmarks/search/bench_search.py --out FOLDER [--seeds 10] [--first 0] [--trainings 150] [--jobs 2]
        [--profiles smooth rugged misleading recorded] [--contenders NAME ...] [--ablations] [--json FILE]

Problems: `problems.Analytic`, and with the profile recorded a table of real trainings (`recorded.Recorded`), on which
only the contender's seed varies. Contenders: `contenders.py`. What a run showed is reduced to the
noise-free hypervolume, as a share of the ideal one, of the networks that its noisy front holds after
every full training's worth of epochs; a run leaves ``FOLDER/profile-seed-contender.json`` and is not
repeated. Reported per profile: quartiles of the share at some budgets; how many times fewer epochs
than stock OptunaSearch (and than random search) a contender needs for what those have after all their
epochs; at which budgets, from ten full trainings on, ours is below stock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.benchmarks.search.contenders import ABLATIONS, CONTENDERS, deployable
from tests.benchmarks.search.problems import PROFILES, Analytic
from tests.benchmarks.search.recorded import Recorded

SHOWN = (10, 15, 25, 37, 50, 75, 100, 150)  # full trainings


def problem_of(profile: str, seed: int) -> Any:
    """The problem of a profile."""
    return Recorded() if profile == "recorded" else Analytic(profile, seed)


def one(profile: str, seed: int, contender: str, trainings: int, file: Path) -> None:
    """Run one contender on one problem; write its shares of the ideal hypervolume."""
    problem = problem_of(profile, seed)
    epochs = trainings * problem.epochs
    started = time.process_time()
    seen = {**CONTENDERS, **ABLATIONS}[contender](problem, seed, epochs)
    seconds = time.process_time() - started
    grid = [float(g) for g in range(problem.epochs, epochs + 1, problem.epochs)]
    shares = [volume / problem.ideal for volume in deployable(problem, seen, grid)]
    record = {"profile": profile, "seed": seed, "contender": contender, "seconds": seconds, "shares": shares}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)


def reached(shares: Sequence[float], goal: float) -> float:
    """Full trainings after which a share is reached; infinite where it never is."""
    return next((i + 1.0 for i, share in enumerate(shares) if share >= goal), float("inf"))


def quartiles(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles; infinities stay."""
    low, middle, high = (float(np.quantile(values, q, method="nearest")) for q in (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def summary(records: list[dict[str, Any]], profile: str, names: Sequence[str]) -> str:
    """Markdown tables of one profile."""
    runs = {(r["contender"], r["seed"]): r["shares"] for r in records if r["profile"] == profile}
    seeds = sorted({seed for _, seed in runs})
    what = "share of the ideal hypervolume after the epochs of so many full trainings, median (quartiles)"
    lines = [f"\n**{profile}**, {len(seeds)} seeds: {what}\n"]
    shown = [n for n in SHOWN if n <= len(next(iter(runs.values())))]
    lines += ["| contender | " + " | ".join(map(str, shown)) + " |", "|--|" + "--|" * len(shown)]
    for name in names:
        mine = [runs[name, seed] for seed in seeds if (name, seed) in runs]
        cells = [quartiles([shares[n - 1] for shares in mine]) for n in shown] if mine else []
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for rival in ("OptunaSearch", "random"):
        lines += [
            "",
            f"| times fewer epochs than {rival} | median (quartiles) | seeds in half of them | in a tenth |",
            "|--|--|--|--|",
        ]
        for name in names:
            factors = []
            for seed in seeds:
                if (name, seed) in runs and (rival, seed) in runs:
                    goal = runs[rival, seed]
                    factors.append(len(goal) / reached(runs[name, seed], goal[-1]))
            if factors and name != rival:
                half, tenth = (sum(f >= times for f in factors) for times in (2, 10))
                lines.append(
                    f"| {name} | {quartiles(factors, 1)} | {half} of {len(factors)} | {tenth} of {len(factors)} |"
                )
    if "ours" in names and ("OptunaSearch", seeds[0]) in runs:
        first = SHOWN[0] - 1
        both = [(runs["ours", s][first:], runs["OptunaSearch", s][first:]) for s in seeds if ("ours", s) in runs]
        ahead = [[a - b for a, b in zip(mine, stock, strict=True)] for mine, stock in both]
        medians = [statistics.median(each) for each in zip(*ahead, strict=True)]
        worst = min(range(len(medians)), key=lambda i: medians[i])
        below = sum(d < 0 for each in ahead for d in each)
        lines.append(
            f"\nours - OptunaSearch from {first + 1} full trainings on: smallest median {medians[worst]:+.3f}"
            f" at {first + 1 + worst}; below in {below} of {sum(map(len, ahead))} (seed, budget) pairs."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trainings", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=(*PROFILES, "recorded"))
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--ablations", action="store_true", help="our search with parts left out or changed, too")
    parser.add_argument("--json", type=Path, help="write all shares to this file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = arguments.contenders or [*CONTENDERS, *(ABLATIONS if arguments.ablations else ())]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        jobs, files = [], []
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            for profile in arguments.profiles:
                for name in names:
                    file = arguments.out / f"{profile}-{seed}-{name.replace(' ', '_')}.json"
                    files.append(file)
                    if not file.exists():
                        jobs.append(pool.submit(one, profile, seed, name, arguments.trainings, file))
        for job in as_completed(jobs):
            job.result()
    records = [json.loads(file.read_text()) for file in files]
    for profile in arguments.profiles:
        print(summary(records, profile, names))
    seconds = {n: statistics.median(r["seconds"] for r in records if r["contender"] == n) for n in names}
    print("\nmedian CPU seconds of a run: " + ", ".join(f"{name} {s:.0f}" for name, s in seconds.items()))
    if arguments.json:
        rounded = [{**r, "shares": [round(s, 4) for s in r["shares"]]} for r in records]
        arguments.json.write_text("[\n" + ",\n".join(json.dumps(r) for r in rounded) + "\n]\n")


if __name__ == "__main__":
    main()
