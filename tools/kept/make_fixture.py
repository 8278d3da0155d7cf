"""Makes the study in this folder. Run it in a checkout of commit 7022e79, whose packages it imports:

    PYTHONPATH=. OMP_NUM_THREADS=1 python make.py OUT

The driver and the workers are those of that commit; the workers are called one after the other in this process instead of
by Ray, so that the study always ends at the same place: the process sends itself SIGKILL when a trial of `multipath` has
trained two epochs of four and another trial, which is to begin behind a shared first stage, has been asked for.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

SPEC: dict[str, Any] = {
    "name": "old",
    "seed": 3,
    "data": {"name": "digits", "image_size": 16, "limit": 200},
    "budget": {"trials": 6, "epochs": 4},
    "rungs": {"epochs": [2], "reduction": 2.0, "grace": 3},
    "sampler": {"startup": 2, "ahead": 0},
    "stages": {"share": 1.0},
    "resources": {"workers": 2},
    "diagnostics": False,
    "methods": {
        "imta": {
            "network": "msdnet-2", "width": 0.125, "batch_size": 16, "variant": "ofa", "growth": 6, "channels": 16,
            "step_mode": "lin_grow", "phase2_share": 0.5,
        },
        "act": {"network": "preact-resnet-14", "width": 0.125, "batch_size": 16},
        "multipath": {
            "network": "resnet-8-2", "width": 0.125, "shortcut": "A", "variant": ["cc", "cp"], "gate_size": 4, "batch_size": 16,
        },
    },
}  # fmt: skip


def train(root: Path) -> None:
    """Run the study and die in the middle of it."""
    from search.searcher import CurveSearcher, constants
    from search.spec import StudySpec
    from search.study import Study, load_data
    from trainables.ray_trainable import RoutedTrainable

    spec = StudySpec.parse(SPEC)
    data = load_data(spec)

    class Worker(RoutedTrainable):
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config, data)

    study = Study.create(spec, root=root, data=data)
    with study.driving() as driver:
        driver.workers = 2
        driver.record("session", {"host": "elsewhere", "pid": 1, "workers": 2})
        searcher = CurveSearcher(str(study.folder.path), constants(spec) | {"storage": None})
        slots: list[tuple[str, Any] | None] = [None, None]
        for turn in range(100):
            for number, slot in enumerate(slots):
                if number == 1 and turn < 1:  # one of them is an epoch behind
                    continue
                if slot is None:
                    config = searcher.suggest("any")
                    slot = slots[number] = config["trial"], Worker(config)
                    driver.started(config["trial"], "")
                    waiting = [trial for trial in driver.state.live if trial.behind and not trial.epoch]
                    if waiting and any(trial.method == "multipath" and trial.epoch == 2 for trial in driver.state.live):
                        driver.flush()
                        os.kill(os.getpid(), signal.SIGKILL)
                name, worker = slot
                action = driver.report(name, json.loads(worker.step()["report"]))
                print(name, driver.state.trials[name].method, driver.state.trials[name].epoch, action, flush=True)
                if action in ("stop", "finish"):
                    slots[number] = None


def main(out: Path) -> None:
    done = subprocess.run([sys.executable, __file__, "--train", str(out)], check=False)
    assert done.returncode == -signal.SIGKILL, done.returncode
    with sqlite3.connect(out / "old" / "control.db") as database:  # whose lease it was does not matter
        database.execute("UPDATE leases SET host = 'elsewhere', pid = 1")
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA page_size = 1024")
    database.execute("VACUUM")
    database.close()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    train(Path(sys.argv[2])) if sys.argv[1] == "--train" else main(Path(sys.argv[1]))
