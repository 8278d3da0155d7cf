"""Simulated studies in which everything goes wrong, and what must be true of them all the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from search.simulation.cluster import Faults, Result
from search.simulation.simulation import Killed, Simulation
from search.state.state import StudyState

HOUR = 3600.0
ALL = Faults(
    crash=0.005, restart=20.0, hang=0.002, patience=900.0, straggle=0.03, slowdown=4.0, delay=60.0, service=0.01,
    node=8, lives=20 * HOUR, repair=600.0,
)  # fmt: skip
"""A worker dies in one of 200 epochs, falls silent in one of 500; a node fails every 20 hours."""

_ILLS: dict[str, dict[str, Any]] = {
    "raises": {"error": "ValueError: no such image"},
    "diverges": {"error": "the loss is nan at epoch 2"},
    "memory": {"error": "torch.OutOfMemoryError", "memory": True},
}


class Ill(Simulation):
    """A `share` of the trials raises, diverges or runs out of memory (unless it is alone), as its name says."""

    def __init__(self, *given: Any, share: float = 0.01, **more: Any) -> None:
        self.met: Counter[str] = Counter()
        self.share = share
        super().__init__(*given, **more)

    def ill(self, name: str) -> str:
        """What befalls a trial; empty for most."""
        rng = random.Random(name)
        return rng.choice(sorted(_ILLS)) if rng.random() < self.share else ""

    def _runner(self, config: dict[str, Any]) -> Iterator[tuple[float, Result]]:
        name = config["trial"]
        ill, last = self.ill(name), random.Random(name).randint(1, 3)
        for epoch, (seconds, result) in enumerate(super()._runner(config), 1):
            if ill and epoch >= last and not (ill == "memory" and self.engine.state.trials[name].alone):
                self.met[ill] += 1
                yield seconds, {"report": json.dumps({"epoch": 0, **_ILLS[ill]})}
                return
            yield seconds, result

    def endure(self, kills: int) -> StudyState:
        """Run, the driver killed so many times at moments drawn from the seed (in the middle of a call, too)."""
        rng = random.Random(self.spec.seed)
        expected = 6 * self.spec.budget.trials  # events, roughly
        for number in range(kills):
            moment = len(self.journal.events) + rng.randint(1, 2 * expected // (kills + 1))
            self.journal.after = rng.random() < 0.5
            try:
                if number == 0:
                    self.journal.dies_at = moment
                    self.run()
                else:
                    self.run(dies_at=moment)
            except Killed:
                self.met["driver"] += 1
            else:
                return self.engine.state
        return self.run()


def wrong(study: Ill) -> list[str]:
    """What was lost, doubled or exceeded; empty where all is well."""
    events, state = study.journal.events, study.engine.state
    found = []
    if study.engine.digest() != study.again().digest():
        found.append("the state differs from that of its journal")
    if state.proposed != study.spec.budget.trials:
        found.append(f"{state.proposed} trials of {study.spec.budget.trials}")
    if state.live or state.paused:
        found.append(f"{len(state.live) + len(state.paused)} trials never came to an end")
    over = ("stop", "finish")
    ends = Counter(e.trial for e in events if e.kind == "failed" or e.payload.get("action") in over)
    found += [f"{name} ended {count} times" for name, count in ends.items() if count != 1]
    shown = Counter((e.trial, e.payload["epoch"]) for e in events if e.kind == "report")
    found += [
        f"epoch {epoch} of {name} was counted {count} times" for (name, epoch), count in shown.items() if count > 1
    ]
    most = study.spec.budget.epochs
    for trial in state.trials.values():
        if sorted(trial.losses) != list(range(1, trial.epoch + 1)) or trial.epoch > most:
            found.append(f"{trial.id} shows epochs {sorted(trial.losses)}")
        if trial.state == "failed" and not (study.ill(trial.id) or "died too often" in trial.reason):
            found.append(f"{trial.id} failed and should not have: {trial.reason}")
    return found
