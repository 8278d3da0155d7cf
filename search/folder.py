"""The folder of a study: what lies where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Where a study lives."""

    path: Path

    @property
    def spec(self) -> Path:
        """The study file as it was resolved."""
        return self.path / "study.toml"

    @property
    def points(self) -> Path:
        """Operating points as Parquet."""
        return self.path / "points"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints by trial and epoch."""
        return self.path / "checkpoints"

    @property
    def stages(self) -> Path:
        """Finished first stages, by their keys (`trainables.stages.FOLDER`)."""
        return self.checkpoints / "stages"

    @property
    def ray(self) -> Path:
        """Ray's scratch."""
        return self.path / "ray"

    @property
    def stop(self) -> Path:
        """A file whose presence asks the driver to stop gently."""
        return self.path / "stop"

    @property
    def control(self) -> Path:
        """The journal, where it is SQLite."""
        return self.path / "control.db"
