"""What a study on other images is worth to a new one (`warm_start.studies`), and what a misleading one costs.

    python tests/benchmarks/search/bench_transfer.py [--seeds 6] [--profiles smooth rugged] [--trainings 60]

The earlier study searches `problems.Elsewhere` of a seed for 40 full trainings' worth of epochs; the new one searches
the problem of that seed from scratch, with the earlier study's trials (`related`), and with those of a problem whose
optima have nothing to do with it (`unrelated`). No configurations of the earlier study run first, so that the model
alone is compared. Prints, per profile, the share of the ideal hypervolume that the networks on the noisy front deliver
after so many full trainings: medians over the seeds; and how many times fewer epochs than from scratch it takes to
what that has in the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.planning.warm_start import ELSEWHERE
from search.sampling.observations import Observations
from search.simulation.simulation import Problem, Simulation, study_spec
from search.state.state import StudyState
from tests.benchmarks.search.bench_search import reached
from tests.benchmarks.search.contenders import WORKERS, Seen, deployable
from tests.benchmarks.search.problems import Analytic, Elsewhere

SHOWN = (5, 10, 20, 30, 60)
EARLIER = 40


def told(state: StudyState) -> list[dict[str, Any]]:
    """The trials of a study as the event "elsewhere" has them."""
    scores = Observations().scores(state)
    by_method: dict[str, list[Any]] = {}
    for trial in sorted(state.trials.values(), key=lambda trial: (-scores.get(trial.id, 0.0), trial.number)):
        if trial.comparable:
            by_method.setdefault(trial.method, []).append(trial)
    chosen = [trial for trials in by_method.values() for trial in trials[:ELSEWHERE]]
    curves = [[column.tolist() for column in trial.arrays(max(trial.comparable))] for trial in chosen]
    return [
        {"id": f"earlier/{t.id}", "config": t.config, "curve": curve} for t, curve in zip(chosen, curves, strict=True)
    ]


def searched(
    problem: Problem, seed: int, trainings: int, trials: list[dict[str, Any]]
) -> tuple[list[Seen], StudyState]:
    """What a search of ours showed that knows these trials of other images."""
    spec = study_spec(problem, seed=seed, budget={"trials": 1_000_000}, sampler={"published": False})
    simulation, seen = Simulation(problem, spec, workers=WORKERS), list[Seen]()
    if trials:
        simulation.engine.record("elsewhere", {"study": "earlier", "trials": trials})

    def listen(event: Any, state: StudyState) -> None:
        if event.kind == "report" and "curve" in event.payload:
            trial = state.trials[event.trial]
            error, macs = trial.arrays(trial.epoch)
            points = [(i, e, m) for i, (e, m) in enumerate(zip(error.tolist(), macs.tolist(), strict=True))]
            seen.append(Seen(state.cost_epochs, trial.config, trial.epoch, points))

    simulation.engine.listeners.append(listen)
    state = simulation.run(lambda engine: engine.state.cost_epochs >= trainings * problem.epochs)
    return seen, state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--profiles", nargs="+", default=["smooth", "rugged"])
    parser.add_argument("--trainings", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shown = [n for n in SHOWN if n <= arguments.trainings]
    records = []
    for profile in arguments.profiles:
        shares: dict[str, list[list[float]]] = {"from scratch": [], "related": [], "unrelated": []}
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            problem = Analytic(profile, seed)
            sources = {"related": Elsewhere(profile, seed), "unrelated": Elsewhere(profile, seed + 1000)}
            earlier = {name: told(searched(source, seed + 1, EARLIER, [])[1]) for name, source in sources.items()}
            grid = [float(n * problem.epochs) for n in range(1, arguments.trainings + 1)]
            for name in shares:
                seen, _ = searched(problem, seed, arguments.trainings, earlier.get(name, []))
                volumes = [volume / problem.ideal for volume in deployable(problem, seen, grid)]
                shares[name].append(volumes)
                records.append({"profile": profile, "seed": seed, "contender": name, "shares": volumes})
        print(f"\n**{profile}**, {arguments.seeds} seeds\n")
        print("| | " + " | ".join(map(str, shown)) + " | times fewer epochs | worse at the end |")
        print("|--|" + "--|" * (len(shown) + 2))
        goals = [each[-1] for each in shares["from scratch"]]
        for name, runs in shares.items():
            cells = [f"{statistics.median(run[n - 1] for run in runs):.3f}" for n in shown]
            times = [len(run) / reached(run, goal) for run, goal in zip(runs, goals, strict=True)]
            worse = sum(run[-1] < goal - 1e-9 for run, goal in zip(runs, goals, strict=True))
            print(
                f"| {name} | {' | '.join(cells)} | {statistics.median(times):.1f} | {worse} of {len(runs)} |",
                flush=True,
            )
    if arguments.json:
        rounded = [{**each, "shares": [round(share, 4) for share in each["shares"]]} for each in records]
        arguments.json.write_text("[\n" + ",\n".join(json.dumps(each) for each in rounded) + "\n]\n")


if __name__ == "__main__":
    main()
