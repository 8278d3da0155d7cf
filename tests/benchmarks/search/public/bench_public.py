"""Searches on public problems that nobody of this project made: ours, with parts left out, and the best rivals.

    python tests/benchmarks/search/public/bench_public.py --data LCBENCH --out FOLDER [--problems lcbench:167152 ...]
        [--contenders ours random "ours no rungs" ...] [--seeds 5] [--first 0] [--trainings 150]
    python tests/benchmarks/search/public/bench_public.py --out FOLDER --report [--base "Optuna TPE"]

Problems: `public_problems.py`; LCBENCH is YAHPO Gym's folder of that name (``model.onnx``, ``encoding.json``), and
onnxruntime has to be importable (``pip install --target PLACE onnxruntime``, PYTHONPATH=PLACE). Contenders: `ours.py`,
`peers.py` (those but Optuna's in an environment of their own).

A run leaves ``FOLDER/problem-seed-contender.json`` and is not repeated; runs are interleaved seed by seed. Prints a
line a run: regret of hypervolume against the best known front (``fronts/``) after 10, 30, 100 and 150 full trainings
(as far as it went), in %. ``--report`` trains nothing and prints tables of what there is: medians over the seeds, how
many times fewer epochs than ``--base`` a contender needs for that one's value at the end, and means over all pairs of
problem and seed. Exits with 1 where a run failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tests.benchmarks.search.public.peers import PEERS
from tests.benchmarks.search.public.public_problems import SUITE, Public, Segment, Unavailable, best_front, trace

SHOWN = (10, 30, 100, 150)  # full trainings
PROBLEMS = tuple(f"lcbench:{task}" for task in SUITE)
MOST_CACHED = 60_000

Record = dict[str, Any]
"""problem, seed, contender, seconds, best (the best known hypervolume), regret (after every full training)."""


def run_one(problem: Public, name: str, seed: int, trainings: int) -> tuple[list[Segment], dict[str, Any]]:
    """What a contender trains, and what else is worth noting."""
    if name in PEERS:
        return PEERS[name](problem, seed, (trainings + 4) * problem.epochs), {}
    from tests.benchmarks.search.public import ours  # the project, which an environment of rivals lacks

    epochs = trainings * problem.epochs
    segments, trials = ours.CONTENDERS[name](problem, seed, epochs)
    return segments, {"trials": trials}


def check_names(names: Sequence[str]) -> None:
    """Raise `Unavailable` for a contender that there is not."""
    for name in names:
        if name in PEERS:
            continue
        from tests.benchmarks.search.public import ours

        if name not in ours.CONTENDERS:
            raise Unavailable(f"contender {name!r}: must be one of {', '.join([*ours.CONTENDERS, *PEERS])}")


def run_all(arguments: argparse.Namespace) -> int:
    """Run what is not there yet; how many runs failed."""
    check_names(arguments.contenders)
    problems: dict[str, Public] = {}
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for key in arguments.problems:
            for name in arguments.contenders:
                plain = name.replace(" ", "_").replace("/", "_")
                file = arguments.out / f"{key.replace(':', '-')}-{seed}-{plain}.json"
                if file.exists():
                    continue
                if key not in problems:
                    problems[key] = Public(key, arguments.data)
                failed += not run_and_keep(problems[key], name, seed, arguments, file)
                if problems[key].cached > MOST_CACHED:
                    problems[key].forget()
    return failed


def run_and_keep(problem: Public, name: str, seed: int, arguments: argparse.Namespace, file: Path) -> bool:
    """Run one contender, write what it found and say it in a line; whether that went well."""
    best = best_front(problem, arguments.out / "fronts")["volume"]
    began, busy = time.perf_counter(), time.process_time()
    try:
        segments, extra = run_one(problem, name, seed, arguments.trainings)
    except Exception as error:  # one rival less is no reason to end the others' runs
        traceback.print_exc()
        print(f"FAILED {problem.key} {seed} {name}: {error!r:.300}", flush=True)
        return False
    volumes = trace(problem, segments, arguments.trainings)
    record: Record = {
        "problem": problem.key,
        "seed": seed,
        "contender": name,
        "seconds": time.process_time() - busy,
        "best": best,
        "regret": [1 - volume / best for volume in volumes],
        "segments": len(segments),
        **extra,
    }
    part = file.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(file)
    shown = ", ".join(f"{100 * record['regret'][n - 1]:.2f} % after {n}" for n in after(len(volumes)))
    print(f"{problem.key} seed {seed} {name}: {shown}; {time.perf_counter() - began:.1f} s", flush=True)
    return True


def after(count: int) -> list[int]:
    """The numbers of full trainings that are shown of so many, the last one among them."""
    return sorted({n for n in SHOWN if n <= count} | ({count} if count else set()))


def reached(regret: Sequence[float], goal: float) -> float:
    """Full trainings after which a regret is reached; infinite where it never is."""
    return next((i + 1.0 for i, each in enumerate(regret) if each <= goal + 1e-12), math.inf)


# -- the report -------------------------------------------------------------------------------------------------------

Runs = Mapping[tuple[str, str, int], Record]
"""By (problem, contender, seed)."""


def read(folder: Path) -> Runs:
    """All records, their regrets counted against the best hypervolume that any run reached."""
    records: list[Record] = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    for key in {record["problem"] for record in records}:
        own = [record for record in records if record["problem"] == key]
        volumes = [[record["best"] * (1 - regret) for regret in record["regret"]] for record in own]
        best = max([record["best"] for record in own] + [max(each) for each in volumes if each])
        for record, each in zip(own, volumes, strict=True):
            record["regret"] = [1 - volume / best for volume in each]
    return {(record["problem"], record["contender"], record["seed"]): record for record in records}


def factors(runs: Runs, base: str, name: str, pairs: Sequence[tuple[str, int]]) -> list[float]:
    """By pair (problem, seed) how many times fewer epochs than the base a contender needs for that one's last value."""
    found = []
    for key, seed in pairs:
        if (key, base, seed) in runs:
            goal = runs[key, base, seed]["regret"]
            found.append(len(goal) / reached(runs[key, name, seed]["regret"], goal[-1]))
    return found


def of_problem(runs: Runs, key: str, names: Sequence[str], base: str) -> list[str]:
    """The table of one problem."""
    lines = [
        f"\n**{key}**\n",
        f"| contender | {' | '.join(map(str, SHOWN))} | times fewer epochs than {base} | seeds | CPU seconds |",
        "|--|" + "--|" * (len(SHOWN) + 3),
    ]
    for name in names:
        seeds = [seed for problem, contender, seed in runs if (problem, contender) == (key, name)]
        if not seeds:
            continue
        mine = [runs[key, name, seed] for seed in seeds]
        cells = []
        for n in SHOWN:
            far = all(len(record["regret"]) >= n for record in mine)
            cells.append(f"{100 * statistics.median(record['regret'][n - 1] for record in mine):.2f}" if far else "")
        times = factors(runs, base, name, [(key, seed) for seed in seeds])
        seconds = statistics.median(record["seconds"] for record in mine)
        fewer = f"{statistics.median(times):.1f}" if times else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {fewer} | {len(seeds)} | {seconds:.0f} |")
    return lines


def over_all(runs: Runs, keys: Sequence[str], names: Sequence[str], base: str) -> list[str]:
    """Means over all pairs of problem and seed."""
    lines = [
        f"\n**All problems**: geometric mean of the regret in % (mean rank) after {', '.join(map(str, SHOWN))}\n",
        f"| contender | {' | '.join(map(str, SHOWN))} | times fewer epochs than {base} | at least 2 | pairs |",
        "|--|" + "--|" * (len(SHOWN) + 3),
    ]
    for name in names:
        pairs = [(key, seed) for key, contender, seed in runs if contender == name and key in keys]
        if not pairs:
            continue
        cells = []
        for n in SHOWN:
            if any(len(runs[key, name, seed]["regret"]) < n for key, seed in pairs):
                cells.append("")
                continue
            logs = [math.log(max(runs[key, name, seed]["regret"][n - 1], 1e-4)) for key, seed in pairs]
            rank = statistics.mean(rank_of(runs, names, name, key, seed, n) for key, seed in pairs)
            cells.append(f"{100 * math.exp(statistics.mean(logs)):.2f} ({rank:.1f})")
        times = factors(runs, base, name, pairs)
        fewer = f"{statistics.median(times):.1f} | {sum(t >= 2 for t in times)} of {len(times)}" if times else " | "
        lines.append(f"| {name} | {' | '.join(cells)} | {fewer} | {len(pairs)} |")
    return lines


def rank_of(runs: Runs, names: Sequence[str], name: str, key: str, seed: int, n: int) -> float:
    """The rank of a contender among all that were run on a problem with a seed; ties share theirs."""
    there = [runs[key, other, seed]["regret"] for other in names if (key, other, seed) in runs]
    values, mine = [regret[n - 1] for regret in there if len(regret) >= n], runs[key, name, seed]["regret"][n - 1]
    return sum(value < mine for value in values) + 1 + 0.5 * (sum(value == mine for value in values) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--data", type=Path, help="YAHPO Gym's folder lcbench; not needed for --report")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), metavar="lcbench:TASK")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="ours and random; of a report all there are")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trainings", type=int, default=150, help="so many full trainings' worth of epochs")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--base", default="Optuna TPE", help="against whose last value epochs are counted")
    arguments = parser.parse_args()
    arguments.contenders = arguments.contenders or ([] if arguments.report else ["ours", "random"])
    for option in ("seeds", "trainings"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} {getattr(arguments, option)}: must be at least 1")
    if arguments.report:
        runs = read(arguments.out)
        if not runs:
            parser.error(f"--out {str(arguments.out)!r}: no run is kept there")
        keys = [key for key in arguments.problems if any(problem == key for problem, _, _ in runs)]
        names = arguments.contenders or list(dict.fromkeys(contender for _, contender, _ in runs))
        print("Regret of hypervolume in % of the best known, median over the seeds, after so many full trainings.")
        for key in keys:
            print("\n".join(of_problem(runs, key, names, arguments.base)))
        print("\n".join(over_all(runs, keys, names, arguments.base)))
        return 0
    if arguments.data is None:
        parser.error("--data is missing: YAHPO Gym's folder lcbench, with model.onnx and encoding.json")
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        return 1 if run_all(arguments) else 0
    except Unavailable as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
