"""A study told by hand: events without training, folded like real ones."""

from __future__ import annotations

import itertools
from typing import Any


class Story:
    """Events of a study, written by hand: `ask`, `report` ... append, `state` folds."""

    def __init__(self, methods: tuple[str, ...] = ("static", "skipnet"), epochs: int = 9) -> None:
        from search.planning.creation import record_of
        from search.spec.study import StudySpec

        self.spec = StudySpec.parse(
            {
                "name": "story",
                "budget": {"trials": 50, "epochs": epochs},
                "rungs": {"epochs": [1, 3], "grace": 0},
                "methods": {name: {} for name in methods},
            }
        )
        self.events: list[Any] = []
        self._time = itertools.count(1000.0)
        self.add(
            "created",
            {
                "spec": self.spec.model_dump(mode="json"),
                "reference": {"error": 0.9, "macs": 1e8},
                "data": {
                    "name": "digits",
                    "hash": "0" * 64,
                    "classes": [str(i) for i in range(10)],
                    "task": {"classes": 10, "size": 16, "channels": 1},
                    "counts": [1077, 360, 360],
                },
                "code_version": "test",
                "methods": record_of(self.spec),
            },
        )
        self.add("session", {"host": "here", "pid": 1, "workers": 1})

    def add(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> None:
        from search.journal.events import Event

        self.events.append(Event(len(self.events) + 1, next(self._time), kind, trial, payload))

    def ask(self, number: int, method: str = "static", **config: Any) -> str:
        name = f"t{number:04d}"
        values = {"lr": 0.1, "weight_decay": 1e-4, "batch_size": 64, "network": "resnet-8", **config}
        payload = {"number": number, "config": {"method": method, **values}, "seed": number, "why": "told"}
        self.add("ask", {**payload, "seen": len(self.events)}, name)
        self.add("start", {}, name)
        return name

    def report(self, trial: str, epoch: int, curve: list[tuple[float, float]] | None = None, **more: Any) -> None:
        payload: dict[str, Any] = {
            "epoch": epoch,
            "phase": "train",
            "comparable": True,
            "losses": {"cross_entropy": 1.0 / epoch},
            "cost_epochs": float(epoch),
            "seconds": 1.0,
            "params": 1000,
            "macs_full": 10_000_000,
            "checkpoint": f"{trial}/epoch-{epoch:04d}",
            **more,
        }
        if curve is not None:
            points = [
                {
                    "setting": {"threshold": i / 10},
                    "knobs": {"threshold": i / 10},
                    "accuracy": accuracy,
                    "correct": round(accuracy * 360),
                    "count": 360,
                    "macs": macs,
                    "macs_std": 0.0,
                    "path_length": 1.0,
                    "distinct_paths": 1,
                }
                for i, (accuracy, macs) in enumerate(curve)
            ]
            payload["curve"] = {"points": points, "diagnostics": {}, "seconds": 0.1}
        self.add("report", payload, trial)

    def decide(self, trial: str, epoch: int, action: str, why: str = "told") -> None:
        self.add("decision", {"epoch": epoch, "action": action, "why": why}, trial)

    @property
    def state(self) -> Any:
        from search.state.state import StudyState

        return StudyState.of(self.events)
