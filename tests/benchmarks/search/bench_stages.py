"""What shared first stages save: the digits preset with codinet alone, with and without sharing.

Same seeds, same number of trials, one worker. Trials that begin behind a stage cost fewer epochs, so
the hypervolume is printed twice: at the end, and when both had trained as many epochs as the shorter one.

    python tests/benchmarks/search/bench_stages.py --trials 24 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

SHARES = (0.0, 0.25, 0.5)


def _search(seed: int, share: float, trials: int, root: Path) -> dict[str, Any]:
    from search.spec.study import StudySpec
    from search.spec.toml import merge, preset, read_toml
    from search.study import Study

    values = read_toml(preset("digits"))
    values["methods"] = {"codinet": values["methods"]["codinet"]}
    values["budget"] = {"trials": trials, "epochs": values["budget"]["epochs"]}  # no time: it would end them unequally
    changes = {"name": f"share-{share}-{seed}", "seed": seed, "resources.workers": 1, "stages.share": share}
    spec = StudySpec.parse(merge(values, {**changes, "stages.enabled": share > 0}))
    study = Study.create(spec, root=root)
    started = time.perf_counter()
    study.launch()
    state = study.state()
    return {"seconds": time.perf_counter() - started, "state": state, "saved": state.saved()}


def _at(state: Any, epochs: float) -> float:
    """The hypervolume when at most `epochs` had been trained."""
    return max((step.hypervolume for step in state.history if step.epochs <= epochs), default=0.0)


def main() -> None:
    """Print one line per search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {options.trials} trials, 1 worker")
    print("seed  share  began behind  epochs trained  epochs saved  s saved  hypervolume  at equal epochs  s in all")
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            runs = {share: _search(seed, share, options.trials, Path(folder)) for share in SHARES}
            least = min(run["state"].cost_epochs for run in runs.values())
            for share, run in runs.items():
                state, saved = run["state"], run["saved"]
                print(
                    f"{seed:4}  {share:5}  {saved['shared']:12}  {state.cost_epochs:14g}  {saved['epochs_saved']:12g}"
                    f"  {saved['seconds_saved']:7.1f}  {state.hypervolume:11.4f}  {_at(state, least):15.4f}"
                    f"  {run['seconds']:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
