"""LCBench as a trainable, and the search on it by `Study` on a real Ray: what `bench_public.py` runs in virtual time.

    python tests/benchmarks/search/public/lcbench.py --data LCBENCH [--problem lcbench:167152] [--seed 0]
        [--trials 400] [--workers 4]

LCBENCH is YAHPO Gym's folder of that name (`public_problems.py`). A trial takes a configuration's 52 epochs from the
surrogate; it shows the error and the MACs of every epoch at which its curve is asked for. Prints the regret of
hypervolume against the best known front after every tenth full training's worth of epochs, counted as in
`bench_public.py`: every epoch that was trained counts, in the order in which workers reported.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tests.benchmarks.search.public.public_problems import MLP, SHAPE, Public, Segment, Unavailable, best_front, trace

FOLDER = "ROUTEFRONT_LCBENCH"


class LCBench:
    """The multilayer perceptron of LCBench on one data set (`task`), as the surrogate foretells its training.

    The surrogate's folder is named by the environment variable ROUTEFRONT_LCBENCH.
    """

    space: ClassVar[dict[str, Any]] = {
        "task": list(SHAPE),
        **{each.name: {"low": each.low, "high": each.high, "log": each.log, "integer": each.integer} for each in MLP},
    }

    def setup(self, config: dict[str, Any], seed: int) -> None:
        """Foretell the whole training; the surrogate has no seeds."""
        problem = Public(f"lcbench:{config['task']}", Path(os.environ[FOLDER]))
        values = {name: value for name, value in config.items() if name != "task"}
        self._errors, self._macs, _ = problem.table({"method": "mlp", **values})
        self._epoch = 0

    def step(self) -> list[dict[str, float]]:
        """The point after one epoch more."""
        self._epoch += 1
        return [{"error": float(self._errors[self._epoch - 1]), "macs": float(self._macs[self._epoch - 1])}]

    def save(self, folder: Path) -> None:
        """Keep the epoch."""
        (folder / "epoch").write_text(str(self._epoch))

    def restore(self, folder: Path) -> None:
        """Go on from an epoch."""
        self._epoch = int((folder / "epoch").read_text())


def study_file(problem: Public, seed: int, trials: int, workers: int) -> dict[str, Any]:
    """The study file of one problem, as values."""
    error, macs = problem.reference
    return {
        "name": f"lcbench-{problem.instance}-{seed}",
        "seed": seed,
        "budget": {"trials": trials, "epochs": problem.epochs},
        "resources": {"workers": workers, "cpus_per_trial": 0.25},
        "objective": {"merit": {"name": "error", "worst": error}, "cost": {"name": "macs", "worst": macs}},
        "trainables": {"mlp": {"path": f"{Path(__file__).resolve()}:LCBench", "task": problem.instance}},
    }


def segments(study: Any) -> list[Segment]:
    """What the study's trials trained, by their reports."""
    journal, found = study.journal(), list[Segment]()
    trained: dict[str, int] = {}
    configs: dict[str, dict[str, Any]] = {}
    for event in journal.events():
        if event.kind == "ask":
            configs[event.trial] = {name: value for name, value in event.payload["config"].items() if name != "task"}
        elif event.kind == "report" and (epoch := event.payload["epoch"]) > trained.get(event.trial, 0):
            found.append((configs[event.trial], trained.get(event.trial, 0) + 1, epoch, event.time, 0.0))
            trained[event.trial] = epoch
    journal.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problem", default="lcbench:167152")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    os.environ[FOLDER] = str(given.data.resolve())
    from search.spec.study import StudySpec
    from search.study import Study

    try:
        problem = Public(given.problem, given.data)
    except Unavailable as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as root:
        spec = StudySpec.parse(study_file(problem, given.seed, given.trials, given.workers))
        study = Study.create(spec, root=Path(root))
        began = time.perf_counter()
        study.launch()
        seconds = time.perf_counter() - began
        volumes = trace(problem, segments(study), 10**6)
        best = max(best_front(problem, Path(root) / "fronts")["volume"], *volumes)
    print(f"{spec.name}: {given.trials} trials, {len(volumes)} full trainings' worth of epochs, {seconds:.0f} s")
    for count in range(10, len(volumes) + 1, 10):
        print(f"after {count:4} full trainings: regret {100 * (1 - volumes[count - 1] / best):.2f} %")


if __name__ == "__main__":
    main()
