"""A trainable that misbehaves where the study's folder says so (`tests.support.faulty`)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from trainables.worker.ray_trainable import RoutedTrainable


class IllTrainable(RoutedTrainable):
    """A trial that may be made to misbehave."""

    def _step(self) -> dict[str, Any]:
        folder = Path(self._order.checkpoints).parent
        ills = json.loads((folder / "ill.json").read_text()) if (folder / "ill.json").exists() else {}
        what, epoch = ills.get(self._order.trial, ills.get("*", ("", 0)))
        done = 0 if self._training is None else self._training.epoch
        if what and done >= epoch:
            getattr(self, f"ill_{what}")(folder / f"{self._order.trial}.ill")
        return super()._step()

    def ill_slow(self, mark: Path) -> None:
        time.sleep(0.5)

    def ill_wait(self, mark: Path) -> None:
        """Until somebody writes the file ``go``."""
        while not (mark.parent / "go").exists():
            time.sleep(0.1)

    def ill_raise(self, mark: Path) -> None:
        raise ArithmeticError("this trial never works")

    def ill_hang(self, mark: Path) -> None:
        """Once."""
        if not mark.exists():
            mark.touch()
            time.sleep(3600)

    def ill_hang_always(self, mark: Path) -> None:
        time.sleep(3600)

    def ill_leak(self, mark: Path) -> None:
        held = []
        while True:
            held.append(bytearray(os.urandom(2**20)) * 20)
            time.sleep(0.02)

    def ill_nan(self, mark: Path) -> None:
        assert self._training is not None
        for parameter in self._training.network.parameters():
            parameter.data.fill_(float("nan"))

    def ill_fork(self, mark: Path) -> None:
        if not mark.exists():
            child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
            mark.write_text(str(child.pid))
