"""Random faults of every kind at once, in virtual time, at sizes that no machine here has; prints Markdown.

    python tests/benchmarks/faults/check_virtual_faults.py [--trials 10000] [--workers 100 1000] [--kills 20] [--sampler
    random]

The real engine, searcher and rungs meet dying workers, silent ones, stragglers, late reports, failing nodes,
trials that raise, diverge or run out of memory (`tests.support.simulated.ALL`), and a driver that is killed at
moments drawn from the seed, before or after it has written an event. "Wrong" is what `simulated.wrong` finds:
trials or epochs lost or counted twice, a budget not kept, a state that differs from that of its journal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.simulation.simulation import study_spec
from tests.benchmarks.search.problems import Minutes
from tests.support.simulated import ALL, HOUR, Ill, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10000)
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    print("| workers | trials | driver killed | setbacks | ills | failed | epochs | hours | wrong | seconds here |")
    print("|--|--|--|--|--|--|--|--|--|--|")
    for workers in arguments.workers:
        problem = Minutes("smooth", 0)
        spec = study_spec(
            problem,
            budget={"trials": arguments.trials},
            sampler={"name": arguments.sampler},
            rungs={"epochs": [1, 3, 9], "pause": True},
            resources={"retries": 3},
        )
        began = time.perf_counter()
        study = Ill(problem, spec, workers=workers, faults=ALL)
        state = study.endure(arguments.kills)
        found = wrong(study)
        kinds = Counter(each["kind"] for trial in state.trials.values() for each in trial.setbacks)
        cells = [
            workers, len(state.trials), study.met.pop("driver", 0),
            ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())),
            ", ".join(f"{k} {n}" for k, n in sorted(study.met.items())),
            len(state.failed), int(state.cost_epochs), round(study._clock() / HOUR, 1),
            "; ".join(found[:5]) or "nothing", round(time.perf_counter() - began),
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
